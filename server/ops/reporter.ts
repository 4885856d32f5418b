import { Pool, type Sql } from '../database.ts'
import type { Log } from '../../lib/log.ts'
import { withTimeout } from '../../lib/timeout.ts'

const EVERY_MS = 10_000
/** How long a server that stops waits until its last report is accepted. */
const LAST_MS = 2_000

/** Reports to the database every 10 s what this process has counted. A process that is killed loses the last 10 s. */
export abstract class Reporter {
  readonly #pool: Pool
  #timer: NodeJS.Timeout | undefined
  #turn = Promise.resolve()
  #isFailing = false

  /** @param failure what is logged when reports begin to fail */
  constructor(
    sql: Sql,
    readonly log: Log,
    readonly failure: { event: string; message: string },
  ) {
    this.#pool = new Pool(sql, 1)
  }

  /** Sends what the database does not know yet. After an error it is called again with the next report. */
  protected abstract report(pool: Pool): Promise<void>

  follow() {
    this.#timer = setInterval(() => void this.tell(), EVERY_MS)
    this.#timer.unref()
  }

  /** Reports now. Calls run one after the other. */
  tell() {
    this.#turn = this.#turn.then(() => this.#tryReport())
    return this.#turn
  }

  async end() {
    clearInterval(this.#timer)
    await withTimeout(LAST_MS, this.tell()).catch(() => {})
  }

  async #tryReport() {
    try {
      await this.report(this.#pool)
      this.#isFailing = false
    } catch (error) {
      const { event, message } = this.failure
      if (!this.#isFailing) this.log.warn({ event, error }, message)
      this.#isFailing = true
    }
  }
}
