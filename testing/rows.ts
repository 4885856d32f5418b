import type { Sql } from 'postgres'

/**
 * What an archive of a table must say about its rows: their number, and the SHA-256 of their CSV. The CSV is put together here
 * with SQL functions, and not by COPY, so that it is another witness than the archiver.
 * @param table a qualified name
 * @param columns those that count, all by default
 */
export async function contentOf(sql: Sql, table: string, columns?: readonly { name: string; type: string }[]) {
  columns ??= await sql<{ name: string; type: string }[]>`
    select name, type from fleet.archive_columns(${table}::text::regclass) order by position`
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
  const order = columns
    .filter(({ name }) => name !== 'device_id' && name !== 'ts')
    .map(({ name, type }) => `"${name}"${type === 'text' ? ' collate "C"' : ''}`)
  const [content] = await sql.unsafe<{ row_count: string; rows_sha256: string }[]>(`
    select count(*)::text as row_count,
      encode(sha256(convert_to(coalesce(string_agg(line, '' order by ${['device_id', 'ts', ...order].join(', ')}), ''), 'UTF8')), 'hex') as rows_sha256
    from (select t.*, ${texts.join(` || ',' || `)} || e'\\n' as line from only ${table} t) rows`)
  if (!content) throw new Error(`nothing was counted in ${table}`)
  return content
}

/** The content of a table without rows. */
export const NO_ROWS = {
  row_count: '0',
  rows_sha256: 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855',
}
