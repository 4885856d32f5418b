import type { MappedColumn } from '../archive/columns.ts'
import { identifier, literal } from '../duckdb.ts'
import { duckdbType, type Column } from '../archive/parquet.ts'

/** A Parquet file with rows, and its columns mapped to today's. */
export interface Source {
  file: string
  columns: readonly MappedColumn[]
}

/** A column of a relation over files with different columns. `type` is DuckDB's. `isDropped`: only archives still have it. */
export interface RelationColumn {
  name: string
  type: string
  isDropped: boolean
}

const INTEGERS = ['SMALLINT', 'INTEGER', 'BIGINT']

/**
 * The columns of a relation over these shapes: today's columns of the table, then columns that only archives have, under
 * their old names. A column with different types in different files gets the widest integer type, or else becomes text, so
 * that no value is lost.
 */
export function relationColumns(today: readonly Column[], shapes: Iterable<readonly MappedColumn[]>): RelationColumn[] {
  const types = new Map(today.map(column => [column.name, new Set([duckdbType(column)])]))
  const dropped = new Map<string, Set<string>>()
  for (const shape of shapes) {
    for (const column of shape) {
      const type = duckdbType(column)
      if (column.today_name !== null) types.get(column.today_name)?.add(type)
      // If a column was dropped and a new one has its name, the name belongs to the new one.
      else if (!types.has(column.name)) dropped.set(column.name, (dropped.get(column.name) ?? new Set()).add(type))
    }
  }
  const entries = [...types, ...[...dropped].sort(([a], [b]) => (a < b ? -1 : 1))]
  return entries.map(([name, found]) => ({ name, type: united([...found]), isDropped: dropped.has(name) }))
}

function united(types: string[]) {
  const [only] = types
  if (only !== undefined && types.length === 1) return only
  return types.every(type => INTEGERS.includes(type)) ? (INTEGERS.findLast(type => types.includes(type)) ?? 'VARCHAR') : 'VARCHAR'
}

/** A SELECT of the rows of all sources with these columns. A column that a file does not have is null. */
export function unite(columns: readonly RelationColumn[], sources: readonly Source[]) {
  const nothing = `select ${columns.map(({ name, type }) => `null::${type} as ${identifier(name)}`).join(', ')} where false`
  const byShape = new Map<string, Source[]>()
  for (const source of sources) {
    const key = JSON.stringify(source.columns)
    byShape.set(key, [...(byShape.get(key) ?? []), source])
  }
  const selects = [...byShape.values()].map(alike => {
    const shape = alike[0]?.columns ?? []
    const values = columns.map(({ name, type, isDropped }) => {
      const column = shape.find(column =>
        isDropped ? column.today_name === null && column.name === name : column.today_name === name,
      )
      return `${column ? identifier(column.name) : 'null'}::${type} as ${identifier(name)}`
    })
    const files = alike.map(({ file }) => literal(file)).join(', ')
    return `select ${values.join(', ')} from read_parquet([${files}], hive_partitioning = false)`
  })
  return [nothing, ...selects].join('\nunion all\n')
}
