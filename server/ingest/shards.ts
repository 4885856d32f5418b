// Which node of a distributed store has a device, without asking: the hash by which Citus distributes, and the ranges of the shards.

/** A shard as fleet.shard_map() returns it: the devices whose hash is from `low` to `high`, and the node that has them. */
export interface Shard {
  low: number
  high: number
  host: string
  port: number
  /** Whether the node that answered has it. */
  is_local: boolean
}

/**
 * Postgres's hashint8(), by which Citus distributes a bigint: the two halves folded into one, and that through hash_bytes_uint32()
 * (PostgreSQL, src/common/hashfn.c; Bob Jenkins, lookup3). In 32-bit integers, because BigInt takes 20 times as long.
 * @param id a whole number within ±(2^53 − 1)
 * @returns from -2^31 to 2^31 - 1
 */
export function hashDeviceId(id: number): number {
  const high = Math.floor(id / 0x1_0000_0000)
  const folded = id ^ (id >= 0 ? high : ~high)
  // 0x9e3779b9 + the 4 bytes of the value + 3923095
  let a = (0x9e3779b9 + 4 + 3923095) | 0
  let b = a
  let c = a
  a = (a + folded) | 0
  c = ((c ^ b) - rotate(b, 14)) | 0
  a = ((a ^ c) - rotate(c, 11)) | 0
  b = ((b ^ a) - rotate(a, 25)) | 0
  c = ((c ^ b) - rotate(b, 16)) | 0
  a = ((a ^ c) - rotate(c, 4)) | 0
  b = ((b ^ a) - rotate(a, 14)) | 0
  return ((c ^ b) - rotate(b, 24)) | 0
}

function rotate(value: number, bits: number) {
  return (value << bits) | (value >>> (32 - bits))
}

/** Finds what has a device: by bisection, because shards that were split are not of one size. */
export class ShardMap<T> {
  readonly #lows: Int32Array
  readonly #highs: Int32Array
  readonly #owners: T[]

  constructor(shards: { low: number; high: number; owner: T }[]) {
    const sorted = [...shards].sort((a, b) => a.low - b.low)
    this.#lows = Int32Array.from(sorted, ({ low }) => low)
    this.#highs = Int32Array.from(sorted, ({ high }) => high)
    this.#owners = sorted.map(({ owner }) => owner)
  }

  /** Undefined if no shard has it, as when the map was read while one was missing. */
  find(deviceId: number): T | undefined {
    const hash = hashDeviceId(deviceId)
    let low = 0
    let high = this.#lows.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.#lows[middle]! <= hash) low = middle + 1
      else high = middle
    }
    return low > 0 && hash <= this.#highs[low - 1]! ? this.#owners[low - 1] : undefined
  }
}
