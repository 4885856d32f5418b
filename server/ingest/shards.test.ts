import t from 'tap'
import { distribute } from '../../cli/distribute.ts'
import { onWorker, withCitus, withoutCitus } from '../../testing/citus.ts'
import { withDatabase, withPlainDatabase } from '../../testing/database.ts'
import { hashDeviceId, ShardMap } from './shards.ts'

/** 100,000 whole numbers of all kinds, the borders first. */
function ids() {
  const borders = [0, 2 ** 31, 2 ** 32, 2 ** 33, 2 ** 48, 2 ** 52, Number.MAX_SAFE_INTEGER].flatMap(border =>
    [-2, -1, 0, 1, 2].flatMap(more => [border + more, -border + more]),
  )
  const random = Array.from({ length: 50_000 }, (_, n) => {
    const size = 2 ** (1 + (n % 53))
    return Math.trunc((2 * Math.random() - 1) * size)
  })
  const all = new Set([...borders, ...random].filter(Number.isSafeInteger))
  for (let n = 1; all.size < 100_000; n++) all.add(n)
  return [...all]
}

t.test('the hash of a device is hashint8 of Postgres, for 100,000 ids', async t => {
  const { sql } = await withDatabase(t)
  const given = ids()
  t.equal(given.length, 100_000)
  const [row] = await sql<{ hashes: number[] }[]>`
    select array_agg(hashint8(i.id) order by i.n) as hashes from unnest(${given}::bigint[]) with ordinality as i (id, n)`
  t.same(
    given.filter((id, n) => hashDeviceId(id) !== row!.hashes[n]),
    [],
  )
})

t.test('a device is found in the shard whose range has its hash, and in none if that one is missing', t => {
  const quarter = 2 ** 30
  const shards = [2, 0, 3, 1].map(n => ({ low: -(2 ** 31) + n * quarter, high: -(2 ** 31) + (n + 1) * quarter - 1, owner: n }))
  const map = new ShardMap(shards)
  const counts = [0, 0, 0, 0]
  for (let id = 1; id <= 10_000; id++) {
    const owner = map.find(id)!
    if (owner !== Math.floor((hashDeviceId(id) + 2 ** 31) / quarter)) t.fail(`device ${id} is in ${owner}`)
    counts[owner]!++
  }
  t.ok(
    counts.every(count => count > 2_000),
    `they are spread: ${counts.join()}`,
  )
  const part = new ShardMap(shards.filter(({ owner }) => owner !== 1))
  for (let id = 1; id <= 1_000; id++)
    if (part.find(id) !== (map.find(id) === 1 ? undefined : map.find(id))) t.fail(`device ${id}`)
  t.equal(new ShardMap([]).find(1), undefined)
  t.end()
})

t.test('a plain store has no map', async t => {
  const { sql } = await withPlainDatabase(t)
  t.same(await sql`select * from fleet.shard_map()`, [])
})

t.test('Citus hashes as we do, and every node knows the map', { skip: withoutCitus, timeout: 600_000 }, async t => {
  const nodes = await withCitus(t)
  await distribute(nodes.coordinator.url('postgres', 'fleet'), { workers: nodes.hosts, shards: 6, log: () => {} })
  const given = ids()
  const [row] = await nodes.admin<{ hashes: number[] }[]>`
    select array_agg(worker_hash(i.id) order by i.n) as hashes from unnest(${given}::bigint[]) with ordinality as i (id, n)`
  t.same(
    given.filter((id, n) => hashDeviceId(id) !== row!.hashes[n]),
    [],
  )
  const read = `select low, high, host || ':' || port as owner, is_local from fleet.shard_map() order by low`
  const shards = await onWorker(t, nodes.coordinator, 'fleet_server').unsafe<
    { low: number; high: number; owner: string; is_local: boolean }[]
  >(read)
  t.equal(shards.length, 6)
  t.ok(shards.every(({ is_local }) => !is_local))
  const map = new ShardMap([...shards])
  const places = await nodes.admin<{ id: string; owner: string }[]>`
    select i.id, s.nodename || ':' || s.nodeport as owner
    from unnest(${given.slice(0, 500)}::bigint[]) i (id)
    join citus_shards s on s.shardid = get_shard_id_for_distribution_column('fleet.device_last_status', i.id)`
  t.equal(places.length, 500)
  t.same(
    places.filter(({ id, owner }) => map.find(Number(id)) !== owner),
    [],
  )
  for (const [nth, worker] of nodes.workers.entries()) {
    t.same(
      (await onWorker(t, worker, 'fleet_server').unsafe(read)).map(shard => ({ ...shard })),
      shards.map(shard => ({ ...shard, is_local: shard.owner === nodes.hosts[nth] })),
    )
  }
})
