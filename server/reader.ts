import postgres, { type PendingQuery } from 'postgres'
import type { ServerConfig } from './config.ts'
import { connectReplica, type Pool, type Sql } from './database.ts'
import type { Log } from '../lib/log.ts'
import { withTimeout } from '../lib/timeout.ts'

/** How often primary and replica are asked where they are. */
const EVERY_MS = 1_000
/** How long either may take to say so; the hot path's pool gives up after 5 s, which is long for a question after health. */
const TIMEOUT_MS = 2_000

interface Sample {
  at: number
  lsn: bigint
}

/**
 * Where reads of the fleet go: to a replica (READ_DATABASE_URL) while it follows closely enough, else to the primary. The lag is told
 * by comparing positions in the WAL, because a replica cut off from its primary believes itself up to date.
 */
export class Reader {
  #samples: Sample[] = []
  #confirmed = performance.now()
  #isUsable = false
  #timer: NodeJS.Timeout | undefined
  #checking: Promise<void> | undefined
  readonly replica: Pool | undefined

  constructor(
    readonly primary: Pool,
    readonly config: Pick<ServerConfig, 'read' | 'poolMax' | 'readMaxLagS'>,
    readonly log: Log,
  ) {
    if (config.read === undefined) return
    this.replica = connectReplica(config.read, config.poolMax)
    this.#tick()
  }

  get #pool() {
    return this.replica !== undefined && this.#isUsable ? this.replica : this.primary
  }

  get inUse() {
    return this.#pool.inUse
  }

  get max() {
    return this.#pool.max
  }

  /** Undefined without a replica. While the replica does not answer, or is cut off, the lag grows. */
  get status() {
    if (this.replica === undefined) return undefined
    return { in_use: this.#isUsable, lag_seconds: Math.round(performance.now() - this.#confirmed) / 1_000 }
  }

  /** Runs one statement that only reads; what the replica cannot answer is asked of the primary. */
  async run<T extends readonly (object | undefined)[]>(statement: (sql: Sql) => PendingQuery<T>) {
    const pool = this.#pool
    if (pool === this.primary) return this.primary.run(statement)
    try {
      return await pool.run(statement)
    } catch (error) {
      // One statement in the way of recovery, or with a wrong value, says nothing of the replica.
      if (!(error instanceof postgres.PostgresError) || /^(08|53|57)/.test(error.code)) this.#decide(false, sentence(error))
      return this.primary.run(statement)
    }
  }

  async end() {
    clearTimeout(this.#timer)
    await this.#checking
    clearTimeout(this.#timer)
    await this.replica?.end()
  }

  #tick() {
    this.#checking = this.#check().finally(() => {
      this.#timer = setTimeout(() => this.#tick(), EVERY_MS)
      this.#timer.unref()
    })
  }

  async #check() {
    const at = performance.now()
    const [primary, replica] = await Promise.allSettled([
      withTimeout(
        TIMEOUT_MS,
        this.primary.run(sql => sql<{ lsn: string }[]>`select (pg_current_wal_lsn() - '0/0')::text as lsn`),
      ),
      withTimeout(
        TIMEOUT_MS,
        this.replica!.run(
          sql => sql<{ lsn: string | null; follows: boolean }[]>`
        select (pg_last_wal_replay_lsn() - '0/0')::text as lsn, pg_is_in_recovery() as follows
      `,
        ),
      ),
    ])
    if (primary.status === 'fulfilled') this.#samples.push({ at, lsn: BigInt(primary.value[0]!.lsn) })
    if (replica.status === 'rejected') {
      return this.#decide(false, sentence(replica.reason))
    }
    const { lsn, follows } = replica.value[0]!
    if (!follows || lsn === null) return this.#decide(false, 'is no replica: it is not in recovery')
    const replayed = BigInt(lsn)
    const seen = this.#samples.filter(sample => sample.lsn <= replayed).at(-1)
    if (seen !== undefined) {
      this.#confirmed = seen.at
      this.#samples = this.#samples.filter(sample => sample.at >= seen.at)
    } else {
      // So far behind that its place is not among those kept.
      this.#samples = this.#samples.slice(-600)
    }
    const lag = (performance.now() - this.#confirmed) / 1_000
    // With the primary away there is nobody to be behind of: who was in use stays in use.
    if (primary.status === 'rejected') return
    this.#decide(seen !== undefined && lag <= this.config.readMaxLagS, `is ${lag.toFixed(1)} s behind`)
  }

  #decide(isUsable: boolean, why: string) {
    if (isUsable === this.#isUsable) return
    this.#isUsable = isUsable
    this.log.warn({ event: isUsable ? 'replica.in_use' : 'replica.not_in_use', why })
  }
}

function sentence(error: unknown) {
  return error instanceof Error ? error.message : String(error)
}
