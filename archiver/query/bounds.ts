import type { DuckDBConnection } from '@duckdb/node-api'

/** What one scan of a relation is limited to: a condition for Postgres, and the range of `ts` in it, as text in UTC. */
interface ScanBounds {
  condition: string
  from?: string | undefined
  to?: string | undefined
}

/** What is enough to read of a relation: one entry for each scan of it. Undefined: everything. */
export type Bounds = ScanBounds[] | undefined

/**
 * These would drop a scan or its conditions because of what is in the tables, which are empty here; or read the rows of a scan once
 * more without its conditions.
 */
const NOT_FOR_BOUNDS = ['statistics_propagation', 'late_materialization', 'compressed_materialization']

/** Prepares a connection for readBounds(). Its settings must not be locked yet. */
export async function allowBounds(duckdb: DuckDBConnection) {
  await duckdb.run(`set disabled_optimizers = '${NOT_FOR_BOUNDS.join(',')}'`)
}

/**
 * Reads, from DuckDB's own plan of a query, to which devices and times it limits each of these tables. DuckDB moves conditions through
 * joins, views and subqueries down to the scan. Every row that the query needs satisfies them, so it is enough to read these rows.
 * A condition that is not understood does not limit anything.
 * @param query one SELECT that this connection can prepare
 * @returns the bounds of each table
 */
export async function readBounds<T extends string>(
  duckdb: DuckDBConnection,
  query: string,
  tables: readonly T[],
): Promise<Record<T, Bounds>> {
  const scans: Record<string, ScanBounds[]> = Object.fromEntries(tables.map(table => [table, []]))
  const unlimited = new Set<string>()
  const visit = ({ extra_info, children = [] }: PlanNode) => {
    const table = extra_info?.Table?.split('.').at(-1)
    if (table !== undefined && scans[table]) {
      const bounds = boundsOf([extra_info?.Filters ?? []].flat(), CLOCK.test(query))
      if (bounds) scans[table].push(bounds)
      else unlimited.add(table)
    }
    children.forEach(visit)
  }
  for (const node of await explain(duckdb, query)) visit(node)
  // A table without any scan is not read at all, or the plan shows it in a way that is unknown here.
  const found = tables.map(table => [table, unlimited.has(table) || scans[table]?.length === 0 ? undefined : scans[table]])
  return Object.fromEntries(found) as Record<T, Bounds>
}

/** The plan of a query. Empty if DuckDB cannot explain it, as for DESCRIBE. */
async function explain(duckdb: DuckDBConnection, query: string) {
  const result = await duckdb.runAndReadAll(`explain (format json)\n${query}`).catch(() => undefined)
  return result === undefined ? [] : (JSON.parse(String(result.getRows()[0]?.[1])) as PlanNode[])
}

/** What may be another time when the query runs. */
const CLOCK = /now|current|today|localtime|timestamp\s*\(|age|clock|random|variable/i

interface PlanNode {
  extra_info?: { Table?: string; Filters?: string | string[] }
  children?: PlanNode[]
}

const DEVICES = /^(?:optional: )?device_id(?:=(-?\d+)(?: OR device_id=-?\d+)*| IN \((-?\d+(?:, -?\d+)*)\))$/
const DEVICE = /^(?:optional: )?device_id(>=|<=|>|<|=)(-?\d+)$/
const MOMENT = /^ts(>=|<=|>|<|=)'(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d{1,6})?)\+00'::TIMESTAMP WITH TIME ZONE$/

/** The conditions of a scan that are understood; undefined if there are none. */
function boundsOf(filters: string[], usesClock: boolean): ScanBounds | undefined {
  // DuckDB splits the filters of a scan at line breaks, also at those in a text of the query.
  if (filters.some(filter => (filter.match(/'/g)?.length ?? 0) % 2 === 1)) return undefined
  const conditions: string[] = []
  let from: string | undefined
  let to: string | undefined
  for (const filter of filters) {
    if (DEVICES.test(filter)) {
      // Numbers stand nowhere else in such a filter.
      conditions.push(`device_id in (${(filter.match(/-?\d+/g) ?? []).join(', ')})`)
      continue
    }
    // Written without brackets, A AND B OR C has no clear meaning.
    if (filter.includes(' OR ')) continue
    for (const term of filter.split(' AND ')) {
      const [, compared, device] = DEVICE.exec(term) ?? []
      if (device !== undefined) {
        conditions.push(`device_id ${compared} ${device}`)
        continue
      }
      const [, sign, moment] = MOMENT.exec(term) ?? []
      // What follows may be a part of a function call or of a text.
      if (moment === undefined) break
      if (sign !== '<' && sign !== '<=') {
        conditions.push(`ts >= '${moment}+00'`)
        if (from === undefined || moment > from) from = moment
      }
      // What the clock says is later when the query runs than it is here: so are lower bounds, which is safe, and upper ones.
      if (sign !== '>' && sign !== '>=' && !usesClock) {
        conditions.push(`ts <= '${moment}+00'`)
        if (to === undefined || moment < to) to = moment
      }
    }
  }
  return conditions.length === 0 ? undefined : { condition: conditions.join(' and '), from, to }
}

/** A condition for the rows that at least one scan needs; undefined if that is all of them. */
export function conditionOf(bounds: Bounds) {
  return bounds?.map(({ condition }) => `(${condition})`).join(' or ')
}

/** Whether any scan needs rows of this range. Times are ISO texts in UTC, the end is excluded. */
export function overlaps(bounds: Bounds, range: { start: string; end: string }) {
  const at = (text: string) => Date.parse(`${text.replace(' ', 'T')}Z`)
  const [start, end] = [Date.parse(range.start), Date.parse(range.end)]
  return bounds?.some(({ from, to }) => (from === undefined || at(from) < end) && (to === undefined || at(to) >= start)) ?? true
}
