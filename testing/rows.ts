import { createHash } from 'node:crypto'
import type { Sql } from 'postgres'

export interface Content {
  row_count: string
  rows_sha256: string
}

type Columns = readonly { name: string; type: string }[]

/**
 * What an archive of a table must say about its rows: their number, and the SHA-256 of their CSV. The CSV is put together here
 * with SQL functions, and not by COPY, so that it is another witness than the archiver.
 * @param table a qualified name
 * @param columns those that count, all by default
 */
export async function contentOf(sql: Sql, table: string, columns?: Columns) {
  columns ??= await columnsOf(sql, table)
  const [content] = await sql.unsafe<Content[]>(`
    select count(*)::text as row_count, encode(sha256(convert_to(${csv(columns)}, 'UTF8')), 'hex') as rows_sha256
    ${lines(table, columns)}`)
  if (!content) throw new Error(`nothing was counted in ${table}`)
  return content
}

/** The rows of a table as CSV, to say later what an archive of them must have, even if the table has gained columns. */
export interface Rows {
  row_count: string
  csv: string
  columns: number
}

export async function rowsOf(sql: Sql, table: string): Promise<Rows> {
  const columns = await columnsOf(sql, table)
  const [rows] = await sql.unsafe<{ row_count: string; csv: string }[]>(`
    select count(*)::text as row_count, ${csv(columns)} as csv ${lines(table, columns)}`)
  return { ...rows!, columns: columns.length }
}

/** The content of rows in a table with this many columns, of which those that were added last are null. */
export function contentWith({ row_count, csv, columns }: Rows, wanted: number): Content {
  if (wanted < columns) throw new Error(`rows of ${columns} columns cannot be in a table with ${wanted}`)
  const longer = wanted === columns ? csv : csv.replaceAll('\n', `${',\\N'.repeat(wanted - columns)}\n`)
  return { row_count, rows_sha256: createHash('sha256').update(longer).digest('hex') }
}

const columnsOf = (sql: Sql, table: string) =>
  sql<{ name: string; type: string }[]>`
    select name, type from fleet.archive_columns(${table}::text::regclass) order by position`

function csv(columns: Columns) {
  const order = columns
    .filter(({ name }) => name !== 'device_id' && name !== 'ts')
    .map(({ name, type }) => `"${name}"${type === 'text' ? ' collate "C"' : ''}`)
  return `coalesce(string_agg(line, '' order by ${['device_id', 'ts', ...order].join(', ')}), '')`
}

function lines(table: string, columns: Columns) {
  const texts = columns.map(({ name, type }) => {
    const column = `t."${name.replaceAll('"', '""')}"`
    const quoted = `'"' || replace(${column}::text, '"', '""') || '"'`
    const forms: Record<string, string> = {
      'timestamp with time zone': `(${column} at time zone 'UTC')::text || '+00'`,
      boolean: `case when ${column} then 't' else 'f' end`,
      inet: `abbrev(${column})`,
      text: quoted,
      jsonb: quoted,
      'text[]': quoted,
    }
    return `case when ${column} is null then '\\N' else ${forms[type] ?? `${column}::text`} end`
  })
  return `from (select t.*, ${texts.join(` || ',' || `)} || e'\\n' as line from only ${table} t) rows`
}

/** The content of a table without rows. */
export const NO_ROWS: Content = {
  row_count: '0',
  rows_sha256: 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855',
}
