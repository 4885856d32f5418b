import { createHash } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import { BoundedMap } from './bounded-map.ts'
import { Pool, type Sql } from '../database.ts'
import type { RateLimit } from './rate-limit.ts'
import type { Log } from '../../lib/log.ts'
import type { Metrics } from '../ops/metrics.ts'
import { unavailable } from '../problem.ts'

/** The owner of a token, as fleet.authenticate returns it. */
export type Identity =
  | { kind: 'device'; device_id: number; gateway_id: null; cohort: string; own_interval_s: number; next_interval_s: number }
  | { kind: 'gateway'; device_id: null; gateway_id: number; cohort: null; own_interval_s: null; next_interval_s: null }

interface Known {
  key: string
  identity: Identity
  asked: number
}

/** A row of fleet.token_changes. */
interface Changes {
  started_at: string
  horizon: string
  changes: [change_id: number, subject: string][]
  cohorts: Record<string, number>
}

/**
 * How long the cache is trusted without an answer from the database. A revoked token must stop within 60 s (docs/design.md,
 * section 6).
 */
const TRUST_MS = 60_000
const POLL_MS = 10_000
const RETRY_MS = 1_000
/** The log of changes is kept for days. A server that was disconnected for longer than this reloads everything. */
const HORIZON_MS = 3_600_000
/** Long enough to protect the database from an agent that keeps sending an old token. */
const UNKNOWN_TTL_MS = 5_000
/**
 * Measured with 1,000, 10,000 and 100,000 devices: each takes 0.31 to 0.34 kB of heap, and 100,000 take 31 MB. Loading them at
 * the start takes 1.3 to 2 s on two busy cores. If there are more devices than this, the oldest entry is dropped.
 */
const MAX_KNOWN = 100_000
const MAX_UNKNOWN = 10_000
const MAX_PENDING = 20_000

/**
 * A cache of tokens: the owner of each, by the token's SHA-256. The token itself is kept nowhere. Entries do not expire, because
 * poll() learns what changed; while polls fail, each entry is trusted for a minute. If several requests with one token miss the
 * cache at the same time, they share one query.
 */
export class Tokens {
  readonly #known = new Map<string, Known>()
  /** The same entries by device_id, or by -gateway_id. */
  readonly #byId = new Map<number, Known>()
  readonly #unknown = new BoundedMap<number>(MAX_UNKNOWN)
  readonly #pending = new Map<string, Promise<Identity | null>>()
  /** Grows with each change. The answer to a lookup that began before a change must not be kept. */
  #generation = 0

  #polled = -Infinity
  #startedAt = ''
  #horizon: string | null = null
  /** The changes in the last answer. While a long transaction runs, they are reported again. */
  #applied = new Set<number>()
  #pacing = ''

  /** @param rateLimit limits the tokens that the database does not know, by the client's network */
  constructor(
    readonly pool: Pool,
    readonly metrics: Metrics,
    readonly now: () => number = () => performance.now(),
    readonly rateLimit?: RateLimit,
  ) {}

  /**
   * Returns null for a token that is unknown or revoked. If the answer is in the cache, it is not a promise.
   * @throws Problem 429 for a token that has to be looked up, if too many unknown ones came from the client's network
   */
  identify(token: string, incoming?: IncomingMessage): Identity | null | Promise<Identity | null> {
    // This cannot be one of our tokens, so it needs no query.
    if (!/^nx[dg]_[0-9a-f]{64}$/.test(token)) return null
    const hash = createHash('sha256').update(token).digest()
    const key = hash.toString('base64')
    const known = this.#known.get(key)
    const isTrusted = known !== undefined && this.#isTrusted(known)
    if (isTrusted || (this.#unknown.get(key) ?? -Infinity) > this.now()) {
      this.metrics.cacheHits.inc()
      return isTrusted ? known.identity : null
    }
    if (known === undefined && incoming !== undefined) this.rateLimit?.check(incoming)
    this.metrics.cacheMisses.inc()
    return this.#pending.get(key) ?? this.#load(key, hash, incoming)
  }

  /** The interval of a device for which a gateway sends. Undefined if the device is not in the cache, enrolled or not. */
  nextInterval(deviceId: number): number | undefined {
    const known = this.#byId.get(deviceId)
    return known !== undefined && this.#isTrusted(known) ? (known.identity.next_interval_s ?? undefined) : undefined
  }

  /** @param subject as fleet.revoke_device notifies: `device:<id>` or `gateway:<id>` */
  forget(subject: string) {
    this.#generation++
    const [kind, id] = subject.split(':')
    const known = this.#byId.get(kind === 'device' ? Number(id) : -Number(id))
    if (known !== undefined) this.#drop(known.key)
  }

  clear() {
    this.#generation++
    this.#known.clear()
    this.#byId.clear()
    this.#unknown.clear()
  }

  /**
   * Applies what changed since the last poll. It reloads everything on the first poll, after a long time without one, and if
   * Postgres was restarted or is a different one: a standby that took over may lack changes that were seen before. Reloading
   * fills the cache with the devices that were heard from last.
   */
  async poll(pool: Pool) {
    const now = this.now()
    const since = now - this.#polled < HORIZON_MS ? this.#horizon : null
    const [row] = await pool.run(
      sql => sql<Changes[]>`
      select started_at, horizon, changes, cohorts from fleet.token_changes(${since}::text::xid8)
    `,
    )
    const { started_at, horizon, changes, cohorts } = row!
    const isAnew = since === null || started_at !== this.#startedAt
    if (isAnew) this.clear()
    for (const [id, subject] of changes) {
      if (!this.#applied.has(id)) this.forget(subject)
    }
    this.#applied = new Set(changes.map(([id]) => id))
    this.#pace(cohorts)
    this.#startedAt = started_at
    this.#horizon = horizon
    this.#polled = now
    if (isAnew) await this.#warm(pool)
  }

  /** Slowing a cohort costs no query, however many devices it has: people slow cohorts when the database is busy already. */
  #pace(cohorts: Record<string, number>) {
    const pacing = JSON.stringify(cohorts)
    if (pacing === this.#pacing) return
    this.#pacing = pacing
    this.#generation++
    const slowed = new Map(Object.entries(cohorts))
    for (const { identity } of this.#known.values()) {
      if (identity.kind !== 'device') continue
      identity.next_interval_s = Math.max(identity.own_interval_s, slowed.get(identity.cohort) ?? 0)
    }
  }

  async #warm(pool: Pool, attempts = 3): Promise<void> {
    const asked = this.now()
    const generation = this.#generation
    const rows = await pool.run(
      sql => sql<(Identity & { token_hash: string })[]>`
      select token_hash, kind, device_id, gateway_id, cohort, own_interval_s, next_interval_s
      from fleet.recent_tokens(${MAX_KNOWN})
    `,
    )
    // Changes arrived in the meantime, and the rows may be older than they. Try again, but not forever.
    if (generation !== this.#generation) return attempts > 1 ? this.#warm(pool, attempts - 1) : undefined
    // Keep one string for each cohort, not one for each device.
    const cohorts = new Map<string | null, string | null>()
    // The device that was heard from last is dropped last.
    for (const { token_hash, ...identity } of rows.reverse()) {
      if (!cohorts.has(identity.cohort)) cohorts.set(identity.cohort, identity.cohort)
      identity.cohort = cohorts.get(identity.cohort)!
      this.#keep({ key: token_hash, identity, asked })
    }
  }

  #isTrusted({ asked }: Known) {
    return this.now() - Math.max(this.#polled, asked) < TRUST_MS
  }

  #load(key: string, hash: Buffer, incoming: IncomingMessage | undefined) {
    if (this.#pending.size >= MAX_PENDING) throw unavailable('Too many tokens are being looked up at once.')
    const load = this.#authenticate(key, hash)
      .finally(() => this.#pending.delete(key))
      .then(identity => {
        if (identity === null && incoming !== undefined) this.rateLimit?.wrong(incoming)
        return identity
      })
    this.#pending.set(key, load)
    return load
  }

  async #authenticate(key: string, hash: Buffer) {
    let generation
    let asked
    let identity
    do {
      generation = this.#generation
      asked = this.now()
      const rows = await this.pool.run(
        sql => sql<Identity[]>`
        select kind, device_id, gateway_id, cohort, own_interval_s, next_interval_s from fleet.authenticate(${hash})
      `,
      )
      identity = rows[0] ?? null
      // A change arrived in the meantime, and the answer may be older than it, so look the token up again.
    } while (generation !== this.#generation)
    this.#drop(key)
    if (identity !== null) {
      this.#keep({ key, identity, asked })
    } else {
      this.#unknown.set(key, asked + UNKNOWN_TTL_MS)
    }
    return identity
  }

  #keep(known: Known) {
    // A device has one token at a time. If it sends with a new one before its notification arrives, the old one ends here: afterwards
    // forget() would find only the new one.
    const before = this.#byId.get(idOf(known.identity))
    if (before !== undefined) this.#drop(before.key)
    if (this.#known.size >= MAX_KNOWN && !this.#known.has(known.key)) this.#drop(oldest(this.#known))
    this.#known.set(known.key, known)
    this.#byId.set(idOf(known.identity), known)
  }

  #drop(key: string) {
    const known = this.#known.get(key)
    if (known === undefined) return
    this.#known.delete(key)
    this.#byId.delete(idOf(known.identity))
  }
}

function idOf({ device_id, gateway_id }: Identity) {
  return device_id ?? -gateway_id
}

function oldest(entries: Map<string, unknown>) {
  return entries.keys().next().value!
}

/**
 * Keeps the cache up to date. A notification that names a device or gateway means that it was revoked, and removes it at once.
 * Any other notification says that something changed. Notifications are lost while the connection is down, so the server also
 * polls every 10 s. LISTEN and the poll do not use the connections of the hot path, so the cache stays trusted when none of those
 * is free. postgres.js keeps trying to listen by itself, even if the first attempt fails.
 * @returns a function that stops it
 */
export function followTokens(sql: Sql, tokens: Tokens, log: Log) {
  const pool = new Pool(sql, 1)
  let isStopped = false
  let isCalled = false
  let wake = () => {}

  function call() {
    isCalled = true
    wake()
  }

  async function follow() {
    let isFailing = false
    while (!isStopped) {
      isCalled = false
      try {
        await tokens.poll(pool)
        if (isFailing) log.info({ event: 'tokens.following' })
        isFailing = false
      } catch (error) {
        if (!isFailing && !isStopped) {
          log.warn(
            { event: 'tokens.poll_failed', error },
            'The server cannot find out which tokens changed. After 60 s it looks up each token again.',
          )
        }
        isFailing = true
      }
      await pause(isFailing ? RETRY_MS : POLL_MS)
    }
  }

  function pause(ms: number) {
    return new Promise<void>(resolve => {
      const timer = setTimeout(resolve, ms)
      wake = () => {
        clearTimeout(timer)
        resolve()
      }
      if (isStopped || isCalled) wake()
    })
  }

  void follow()
  void sql
    .listen(
      'fleet_tokens',
      payload => {
        if (/^(device|gateway):\d+$/.test(payload)) tokens.forget(payload)
        else call()
      },
      () => {
        log.info({ event: 'tokens.listening' })
        call()
      },
    )
    .catch((error: unknown) => {
      log.warn(
        { event: 'tokens.listen_failed', error },
        'There are no notifications of revoked tokens yet. The poll finds them within 10 s.',
      )
    })

  return function unfollow() {
    isStopped = true
    wake()
  }
}
