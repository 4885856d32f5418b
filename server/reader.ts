import postgres, { type PendingQuery } from 'postgres'
import type { ServerConfig } from './config.ts'
import { connectReplica, type Pool, type Sql } from './database.ts'
import type { Log } from '../lib/log.ts'
import { withTimeout } from '../lib/timeout.ts'

/** How often the primary and the replica are asked for their positions. */
const EVERY_MS = 1_000
/** How long either of them may take to answer. The hot path's pool gives up after 5 s, which is long for a health check. */
const TIMEOUT_MS = 2_000

interface Sample {
  at: number
  lsn: bigint
}

/**
 * Chooses where devices are read: on a replica (READ_DATABASE_URL) while it follows closely enough, otherwise on the primary. The
 * lag comes from comparing positions in the WAL, because a replica that is cut off from its primary believes that it is up to
 * date.
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

  /** Undefined without a replica. The lag grows while the replica does not answer or is cut off. */
  get status() {
    if (this.replica === undefined) return undefined
    return { in_use: this.#isUsable, lag_seconds: Math.round(performance.now() - this.#confirmed) / 1_000 }
  }

  /** Runs one statement that only reads. If the replica cannot answer, the primary is asked. */
  async run<T extends readonly (object | undefined)[]>(statement: (sql: Sql) => PendingQuery<T>) {
    const pool = this.#pool
    if (pool === this.primary) return this.primary.run(statement)
    try {
      return await pool.run(statement)
    } catch (error) {
      // A statement that conflicts with recovery, or has a wrong value, says nothing about the replica.
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
    if (!follows || lsn === null) return this.#decide(false, 'is not a replica: it is not in recovery')
    const replayed = BigInt(lsn)
    const seen = this.#samples.filter(sample => sample.lsn <= replayed).at(-1)
    if (seen !== undefined) {
      this.#confirmed = seen.at
      this.#samples = this.#samples.filter(sample => sample.at >= seen.at)
    } else {
      // The replica is so far behind that its position is older than all samples.
      this.#samples = this.#samples.slice(-600)
    }
    const lag = (performance.now() - this.#confirmed) / 1_000
    // If the primary is unreachable, there is no lag to measure, so the choice stays as it is.
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
