import { createHash } from 'node:crypto'
import type { Pool, Sql } from './database.ts'
import type { Log } from './log.ts'
import type { Metrics } from './metrics.ts'
import { unavailable } from './problem.ts'

/** Whose token it is, as fleet.authenticate tells. */
export type Identity =
  | { kind: 'device', device_id: number, gateway_id: null, name: string, cohort: string, next_interval_s: number }
  | { kind: 'gateway', device_id: null, gateway_id: number, name: string, cohort: null, next_interval_s: null }

interface Entry {
  identity: Identity | null
  expires: number
}

/** Design 6: a revoked token stops within 60 s when its notification is lost. */
const TTL_MS = 60_000
/** Long enough to spare the database an agent that hammers with an old token. */
const UNKNOWN_TTL_MS = 5_000
const MAX_KNOWN = 100_000
const MAX_UNKNOWN = 10_000
const MAX_PENDING = 20_000

/**
 * Tokens seen lately, by their SHA-256, least recently used first; the token itself is kept nowhere.
 * Copies of one token that miss together share one query.
 */
export class Tokens {
  readonly #known = new Map<string, Entry>()
  readonly #unknown = new Map<string, Entry>()
  readonly #pending = new Map<string, Promise<Identity | null>>()
  /** Moves with each revocation: an answer asked for before it must not be kept. */
  #generation = 0

  constructor(readonly pool: Pool, readonly metrics: Metrics, readonly now: () => number = Date.now) {}

  /** Null for a token that is unknown or revoked. Answers at once when it is in the cache. */
  identify(token: string): Identity | null | Promise<Identity | null> {
    // Not one of ours: no query, whatever is tried.
    if (!/^nx[dg]_[0-9a-f]{64}$/.test(token)) return null
    const hash = createHash('sha256').update(token).digest()
    const key = hash.toString('base64')
    const entry = this.#fresh(this.#known, key) ?? this.#fresh(this.#unknown, key)
    if (entry !== undefined) {
      this.metrics.cacheHits.inc()
      return entry.identity
    }
    this.metrics.cacheMisses.inc()
    return this.#pending.get(key) ?? this.#load(key, hash)
  }

  /** @param payload as fleet.revoke_device notifies: `device:<id>` or `gateway:<id>` */
  forget(payload: string) {
    this.#generation++
    for (const [key, { identity }] of this.#known) {
      if (identity !== null && payload === `${identity.kind}:${identity.device_id ?? identity.gateway_id}`) {
        this.#known.delete(key)
      }
    }
  }

  clear() {
    this.#generation++
    this.#known.clear()
    this.#unknown.clear()
  }

  #fresh(entries: Map<string, Entry>, key: string) {
    const entry = entries.get(key)
    if (entry === undefined) return undefined
    entries.delete(key)
    if (entry.expires <= this.now()) return undefined
    entries.set(key, entry)
    return entry
  }

  #load(key: string, hash: Buffer) {
    if (this.#pending.size >= MAX_PENDING) throw unavailable('Too many tokens are being looked up at once.')
    const load = this.#authenticate(key, hash).finally(() => this.#pending.delete(key))
    this.#pending.set(key, load)
    return load
  }

  async #authenticate(key: string, hash: Buffer) {
    let generation
    let identity
    do {
      generation = this.#generation
      const rows = await this.pool.run(sql => sql<Identity[]>`
        select kind, device_id, gateway_id, name, cohort, next_interval_s from fleet.authenticate(${hash})
      `)
      identity = rows[0] ?? null
      // A revocation came in between: the answer may be from before it, so ask again.
    } while (generation !== this.#generation)
    if (identity === null) keep(this.#unknown, MAX_UNKNOWN, key, { identity, expires: this.now() + UNKNOWN_TTL_MS })
    else keep(this.#known, MAX_KNOWN, key, { identity, expires: this.now() + TTL_MS })
    return identity
  }
}

function keep(entries: Map<string, Entry>, max: number, key: string, entry: Entry) {
  if (entries.size >= max) entries.delete(entries.keys().next().value!)
  entries.set(key, entry)
}

/**
 * Follows revocations. What was notified while the connection was down is lost, so each (re)connection begins with
 * an empty cache; postgres.js goes on trying by itself, also when the first try fails.
 */
export async function followRevocations(sql: Sql, tokens: Tokens, log: Log) {
  await sql.listen(
    'fleet_tokens',
    payload => tokens.forget(payload),
    () => {
      tokens.clear()
      log.info({ event: 'tokens.listening' })
    },
  ).catch((error: unknown) => {
    log.warn({ event: 'tokens.listen_failed', error }, 'Revocations are not heard yet; cached tokens last up to 60 s.')
  })
}
