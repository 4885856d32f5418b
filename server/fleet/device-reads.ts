import { createHash } from 'node:crypto'
import type { Backpressure } from '../ingest/backpressure.ts'
import type { ServerConfig } from '../config.ts'
import type { Log } from '../../lib/log.ts'
import type { Metrics } from '../ops/metrics.ts'
import type { Reader } from '../reader.ts'
import { cohortsOf, type Principal } from '../auth/principal.ts'

/** A row of the view fleet.device_status. Its other columns are passed through. */
export interface DeviceStatus {
  device_id: number
  seconds_since: number | null
}

export interface Page {
  status?: string | undefined
  /** Seconds. */
  older_than?: number | undefined
  after: number
  limit: number
  cohort?: string | undefined
  alias?: string | undefined
}

/**
 * Reads devices from last status, or from the heartbeats themselves (the legacy query). The legacy query is the fallback if last
 * status is wrong, and last status is compared with it.
 */
export class DeviceReads {
  #comparing = false

  constructor(
    readonly reader: Reader,
    readonly config: ServerConfig,
    readonly metrics: Metrics,
    readonly backpressure: Backpressure,
    readonly log: Log,
  ) {}

  /** A page of devices, and the names of the columns in order, which an empty page has too. */
  async list(principal: Principal, target: string, page: Page) {
    if (principal.cohorts !== null) return this.#fast(page, cohortsOf(principal))
    const fromLastStatus = isWithin(target, this.config.readFromLastStatus)
    const first = fromLastStatus ? await this.#fast(page) : await this.#legacy(page)
    if (this.config.perfDiffEnabled && this.#mayCompare()) void this.#compare(page, fromLastStatus, first)
    return { rows: first.rows, columns: first.columns }
  }

  async get(principal: Principal, target: string, deviceId: number) {
    const cohorts = cohortsOf(principal)
    if (cohorts === null && !isWithin(target, this.config.readFromLastStatus)) {
      const [device] = await this.reader.run(
        sql => sql<DeviceStatus[]>`
        select * from fleet.device_status_legacy where device_id = ${deviceId}
      `,
      )
      return device
    }
    const start = performance.now()
    const [device] = await this.reader.run(
      sql => sql<DeviceStatus[]>`
      select * from fleet.device_status
      where device_id = ${deviceId} and (${cohorts}::text::text[] is null or cohort = any (${cohorts}::text::text[]))
    `,
    )
    this.metrics.readLatency.observe({ query: 'detail' }, performance.now() - start)
    return device
  }

  /** @param cohorts of a key that is bound to some */
  async #fast({ status, older_than, after, limit, cohort, alias }: Page, cohorts: string | null = null) {
    const start = performance.now()
    const rows = await this.reader.run(sql => {
      const filters = sql`
        ${status ?? null}, ${interval(older_than)}::interval, ${after}, ${limit}, ${cohort ?? null}, ${alias ?? null}
      `
      return cohorts === null
        ? sql<DeviceStatus[]>`select * from fleet.list_devices(${filters})`
        : sql<DeviceStatus[]>`select * from fleet.list_devices_of(${cohorts}::text::text[], ${filters})`
    })
    const ms = performance.now() - start
    this.metrics.readLatency.observe({ query: 'list' }, ms)
    this.metrics.fastList.observe(ms)
    return { rows: [...rows], columns: rows.columns.map(({ name }) => name), ms }
  }

  async #legacy({ status, older_than, after, limit, cohort, alias }: Page) {
    const start = performance.now()
    const rows = await this.reader.run(
      sql => sql<DeviceStatus[]>`
      select * from fleet.list_devices_legacy(
        ${status ?? null}, ${interval(older_than)}::interval, ${after}, ${limit}, ${cohort ?? null}, ${alias ?? null}
      )
    `,
    )
    const ms = performance.now() - start
    this.metrics.legacyList.observe(ms)
    return { rows: [...rows], columns: rows.columns.map(({ name }) => name), ms }
  }

  /** A comparison is the first work to be shed. Only one runs at a time, and only while half of the connections are free. */
  #mayCompare() {
    return !this.#comparing && !this.backpressure.sheds('perf_diff') && this.reader.inUse * 2 <= this.reader.max
  }

  /** Runs the other query too, after the answer was sent. Heartbeats keep arriving, so what differs is read once more. */
  async #compare(page: Page, fromLastStatus: boolean, first: { rows: DeviceStatus[]; ms: number }) {
    this.#comparing = true
    try {
      const other = fromLastStatus ? await this.#legacy(page) : await this.#fast(page)
      let differing = differences(first.rows, other.rows)
      if (differing.size > 0) {
        const again = fromLastStatus ? await this.#fast(page) : await this.#legacy(page)
        const still = differences(again.rows, other.rows)
        differing = new Set([...differing].filter(id => still.has(id)))
      }
      const [fast, legacy] = fromLastStatus ? [first, other] : [other, first]
      this.log.info({
        event: 'perf_diff.query_comparison',
        query: 'list_devices',
        fast_ms: round(fast.ms),
        legacy_ms: round(legacy.ms),
        speedup: round(legacy.ms / fast.ms),
        agrees: differing.size === 0,
        differing: [...differing].slice(0, 10),
        rows: fast.rows.length,
      })
    } catch (error) {
      this.log.warn(
        { event: 'perf_diff.query_failed', query: 'list_devices', error },
        'The comparison of the two queries failed.',
      )
    } finally {
      this.#comparing = false
    }
  }
}

/**
 * Whether a request is in the share (0 to 1), by a hash of its path and query, so that the same request always is or never is.
 */
export function isWithin(target: string, share: number) {
  return createHash('sha1').update(target).digest().readUInt32BE(0) / 2 ** 32 < share
}

/**
 * The ids of devices that are in only one list, or that differ in anything except when they were last heard from: the legacy query
 * does not know of duplicates.
 */
function differences(a: DeviceStatus[], b: DeviceStatus[]) {
  const text = (device: DeviceStatus) => JSON.stringify({ ...device, seconds_since: null, last_received_at: null })
  const rest = new Map(b.map(device => [device.device_id, text(device)]))
  const differing = new Set<number>()
  for (const device of a) {
    if (rest.get(device.device_id) !== text(device)) differing.add(device.device_id)
    rest.delete(device.device_id)
  }
  for (const id of rest.keys()) differing.add(id)
  return differing
}

function interval(seconds: number | undefined) {
  return seconds === undefined ? null : `${seconds} s`
}

function round(value: number) {
  return Math.round(value * 100) / 100
}
