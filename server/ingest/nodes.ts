// Sends heartbeats to the node of the store that has their device. A plain store has one node. See docs/scale-out.md.
import postgres, { type PendingQuery } from 'postgres'
import type { Token } from '../auth/tokens.ts'
import type { Login } from '../config.ts'
import { connectHot, Pool, type Sql } from '../database.ts'
import { nameOfHost, withHost } from '../../lib/database-url.ts'
import type { Log } from '../../lib/log.ts'
import type { Metrics } from '../ops/metrics.ts'
import { type Problem, toProblem, unavailable } from '../problem.ts'
import { type Shard, ShardMap } from './shards.ts'
import type { Chunk, Outcome, Place, Writer } from './writer.ts'

/** How often the map of the shards is read. A shard that has moved meanwhile costs its heartbeats a way through another node. */
const EVERY_MS = 10_000
/** After a write failed, the map is read at once, but not more often than this. */
const SOON_MS = 1_000

/**
 * Connections of each worker process to each further node: two for the writer, and two for the lookups of gateways and of large
 * bodies. Two of them stay open.
 */
const NODE_CONNECTIONS = 4

type Statement<T extends readonly (object | undefined)[]> = (sql: Sql) => PendingQuery<T>

/** An item of a request, as text for the writer, with the device that it names. */
interface Item {
  device_id: number | null
  text: string
}

/** A node of the store, with connections and a queue of its own. */
export class Node implements Place {
  readonly writer: Writer
  /** Shards that it has, by the map. */
  shards = 0

  constructor(
    /** host:port */
    readonly name: string,
    readonly pool: Pool,
    readonly nodes: Nodes,
    make: (pool: Pick<Pool, 'run' | 'max'>, place: Place) => Writer,
  ) {
    this.writer = make(this, this)
  }

  get #isHome() {
    return this.pool === this.nodes.pool
  }

  get max() {
    return this.pool.max
  }

  get label() {
    return this.nodes.isDistributed ? this.name : undefined
  }

  /** Whether what is sent to it is refused at once, because it cannot be reached. The pool goes on trying. */
  get isAway() {
    return this.pool.isAway && (this.#isHome || this.pool.wasOpen)
  }

  /**
   * Runs a statement on this node. As long as the server has never reached it, as in a network that lets only the nodes talk to each
   * other, the home runs it: every node stores every device.
   * @throws Problem 503 at once if it is away, or if it lost another node that it needed
   */
  async run<T extends readonly (object | undefined)[]>(statement: Statement<T>) {
    try {
      return await this.#run(statement)
    } catch (error) {
      // What Citus raises if its connection to another node ends; nothing was committed.
      const isLost = this.label !== undefined && error instanceof postgres.PostgresError && error.code === 'XX000'
      throw isLost ? unavailable('A part of the database was lost just now; nothing was acknowledged.', error) : error
    }
  }

  async #run<T extends readonly (object | undefined)[]>(statement: Statement<T>) {
    if (this.#isHome) return await this.pool.run(statement)
    if (!this.pool.wasOpen) return await this.nodes.pool.run(statement)
    if (this.isAway) throw away()
    return await this.pool.run(statement)
  }

  /** @throws Problem 503 if this node is away, and as Writer.store() */
  store(chunk: Chunk) {
    return this.#isHome || !this.isAway ? this.writer.store(chunk) : this.#refuse(chunk.items)
  }

  wrote(heartbeats: number) {
    const { label } = this
    if (label !== undefined) this.nodes.metrics.nodeWrites.inc({ node: label }, heartbeats)
  }

  failed(heartbeats: number) {
    const { label } = this
    if (label === undefined) return
    this.nodes.metrics.nodeWritesFailed.inc({ node: label }, heartbeats)
    this.nodes.readSoon()
  }

  #refuse(heartbeats: number): Promise<never> {
    this.nodes.metrics.writesFailed.inc(heartbeats)
    this.failed(heartbeats)
    return Promise.reject(away())
  }
}

function away() {
  return unavailable('The part of the database that has this device cannot be reached now; nothing was acknowledged.')
}

/**
 * The nodes to which heartbeats go. The home is the node of SERVER_DATABASE_URL, the coordinator of a distributed store; of a plain one
 * it is all there is. The others are those that have shards, by fleet.shard_map(), which any node answers. The map is a hint: a node
 * that does not have a device stores it all the same, with more work.
 */
export class Nodes {
  readonly home: Node
  readonly #reports: Pool
  #others = new Map<string, Node>()
  #map: ShardMap<Node> | undefined
  /** The rows of the map as text, to see whether they have changed. */
  #known = '[]'
  /** How the other nodes reach the home, if it has shards. */
  #homeAddress: string | undefined
  #timer: NodeJS.Timeout | undefined
  #soon: NodeJS.Timeout | undefined
  #lastRead = -Infinity
  #reading: Promise<void> | undefined
  #ending: Promise<unknown>[] = []
  #isEnded = false

  /**
   * @param pool connects to the home
   * @param reports as well, for statements that heartbeats do not wait for
   * @param make makes the writer of a node
   */
  constructor(
    readonly login: Login,
    readonly pool: Pool,
    reports: Sql,
    readonly metrics: Metrics,
    readonly log: Log,
    readonly make: (pool: Pick<Pool, 'run' | 'max'>, place: Place) => Writer,
  ) {
    this.home = new Node(nameOfHost(login.url), pool, this, make)
    this.#reports = new Pool(reports, 1)
  }

  get isDistributed() {
    return this.#map !== undefined
  }

  /** The home first. */
  get all(): Node[] {
    return [this.home, ...this.#others.values()]
  }

  /** The others that can be reached. */
  get #open() {
    return [...this.#others.values()].filter(({ pool }) => pool.isOpen)
  }

  /** Reads the map now, and from time to time. */
  follow() {
    void this.read()
    this.#timer = setInterval(() => void this.read(), EVERY_MS)
    this.#timer.unref()
  }

  /** The map may be out of date. */
  readSoon() {
    if (this.#soon !== undefined || this.#isEnded) return
    this.#soon = setTimeout(
      () => {
        this.#soon = undefined
        void this.read()
      },
      Math.max(0, this.#lastRead + SOON_MS - performance.now()),
    )
    this.#soon.unref()
  }

  /**
   * The node that has a device. If nobody knows, the home, or while it is away another one.
   * @param deviceId null for a token that names none
   */
  of(deviceId: number | null): Node {
    if (this.#map === undefined) return this.home
    const node = deviceId === null ? undefined : this.#map.find(deviceId)
    return node ?? (this.home.isAway ? (this.#open[0] ?? this.home) : this.home)
  }

  /** Where a token is looked up: not at the coordinator, which has more to do the more nodes there are. */
  ofToken({ deviceId, isGateway, hash }: Token): Node {
    if (this.#map === undefined || !isGateway) return this.of(deviceId)
    const open = this.#open
    return open[Number.parseInt(hash.slice(0, 6), 16) % open.length] ?? this.home
  }

  /**
   * Stores the heartbeats of one request: each on the node that has its device, with the outcomes in the order of the items. Those of
   * a node that fails are Problems.
   * @throws as Writer.store() if all go to one node
   */
  async store(token: Token, items: Item[]): Promise<(Outcome | Problem)[]> {
    if (this.#map === undefined || !token.isGateway) return await this.of(token.deviceId).store(chunkOf(token, items))
    const parts = new Map<Node, number[]>()
    for (const [position, { device_id }] of items.entries()) {
      const node = this.of(device_id)
      const part = parts.get(node)
      if (part === undefined) parts.set(node, [position])
      else part.push(position)
    }
    if (parts.size <= 1) return await (parts.keys().next().value ?? this.home).store(chunkOf(token, items))
    const outcomes = Array<Outcome | Problem>(items.length)
    await Promise.all(
      [...parts].map(async ([node, positions]) => {
        const chunk = chunkOf(
          token,
          positions.map(position => items[position]!),
        )
        const own = await node.store(chunk).catch((error: unknown) => Array<Problem>(positions.length).fill(toProblem(error)))
        for (const [nth, position] of positions.entries()) outcomes[position] = own[nth]!
      }),
    )
    return outcomes
  }

  /**
   * Runs a statement on every node, and returns the first answer.
   * @throws what the home throws, if none answers
   */
  async any<T extends readonly (object | undefined)[]>(statement: Statement<T>) {
    if (this.#map === undefined) return await this.pool.run(statement)
    const open = this.all.filter(({ pool }) => pool.isOpen)
    if (open.length === 0) return await this.pool.run(statement)
    return await Promise.any(open.map(({ pool }) => pool.run(statement))).catch((error: AggregateError) => {
      throw error.errors[0]
    })
  }

  /** Reads the map. What cannot be read stays as it is. */
  async read() {
    this.#reading ??= this.#read().finally(() => (this.#reading = undefined))
    return await this.#reading
  }

  /** Resolves when everything that was accepted so far is settled. */
  async drained() {
    await Promise.all(this.all.map(({ writer }) => writer.drained()))
  }

  /** Ends the connections to the other nodes; those to the home are the caller's. */
  async end() {
    this.#isEnded = true
    clearInterval(this.#timer)
    clearTimeout(this.#soon)
    await this.#reading
    await Promise.all([...this.#ending, ...[...this.#others.values()].map(({ pool }) => pool.end())])
  }

  async #read() {
    this.#lastRead = performance.now()
    const nodes = this.home.isAway ? [...this.all.slice(1), this.home] : this.all
    for (const node of nodes) {
      // The home is always asked: until the first connection is open, it is only not open yet.
      if (node !== this.home && !node.pool.isOpen) continue
      try {
        const shards = await (node === this.home ? this.#reports : node.pool).run(
          sql => sql<Shard[]>`select low, high, host, port, is_local from fleet.shard_map() order by low, host, port`,
        )
        if (!this.#isEnded) this.#adopt([...shards], node)
        return
      } catch (error) {
        this.log.debug({ event: 'nodes.map_not_read', node: node.name, error })
      }
    }
  }

  /** @param from the node that answered */
  #adopt(shards: Shard[], from: Node) {
    if (from === this.home) this.#homeAddress = shards.filter(({ is_local }) => is_local).map(addressOf)[0]
    const known = JSON.stringify([this.#homeAddress, shards.map(shard => [shard.low, shard.high, addressOf(shard)])])
    if (known === this.#known) return
    this.#known = known
    const before = this.#others
    this.#others = new Map()
    for (const node of [this.home, ...before.values()]) node.shards = 0
    const owners = shards.map(({ low, high, ...shard }) => {
      const owner = this.#ownerOf(shard, before)
      owner.shards++
      return { low, high, owner }
    })
    const wasDistributed = this.isDistributed
    this.#map = owners.length === 0 ? undefined : new ShardMap(owners)
    for (const [address, node] of before) if (!this.#others.has(address)) this.#leave(node)
    if (wasDistributed || this.isDistributed)
      this.log.info({ event: 'nodes.map_changed', nodes: this.all.map(({ name, shards }) => ({ node: name, shards })) })
  }

  #ownerOf(shard: Pick<Shard, 'host' | 'port'>, before: Map<string, Node>): Node {
    const address = addressOf(shard)
    if (address === this.#homeAddress) return this.home
    const known = this.#others.get(address) ?? before.get(address)
    const node = known ?? this.#connect(address, shard)
    this.#others.set(address, node)
    return node
  }

  #connect(address: string, { host, port }: Pick<Shard, 'host' | 'port'>) {
    const login = { ...this.login, url: withHost(this.login.url, host, port) }
    const pool = connectHot(login, NODE_CONNECTIONS, { log: this.log.child({ node: address }) })
    return new Node(address, pool, this, this.make)
  }

  /** It has no shard any more. What it was given before is written. */
  #leave({ writer, pool }: Node) {
    this.#ending.push(writer.drained().then(() => pool.end()))
  }
}

function addressOf({ host, port }: Pick<Shard, 'host' | 'port'>) {
  return `${host}:${port}`
}

function chunkOf(token: Token, items: Item[]): Chunk {
  return {
    token: token.hash,
    items: items.length,
    devices: token.isGateway ? new Set(items.map(({ device_id }) => device_id)).size : 1,
    json: items.map(({ text }) => text).join(','),
  }
}
