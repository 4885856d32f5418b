import { createHash } from 'node:crypto'
import { Writable } from 'node:stream'
import { identifier, literal } from '../duckdb.ts'
import { openSession } from '../database.ts'
import type { Database } from '../../lib/database.ts'
import { copyOptions, copyOrder, copyValues, duckdbOptions, duckdbValues, type Column } from './parquet.ts'
import { feed } from './pipe.ts'

/**
 * The COPY whose bytes `rows_sha256` is the hash of. A day has one heartbeat for each device and ts. If a superuser wrote others,
 * their other columns decide, so that a restored table has the same order.
 * @param table a qualified and quoted name
 */
export function copyOfRows(table: string, columns: Column[]) {
  return (
    `copy (select ${copyValues(columns)} from only ${table} order by ${copyOrder(columns)}) ` +
    `to stdout (${copyOptions(columns)})`
  )
}

/** The SQL by which anybody can compute `rows_sha256`; see RUNBOOK.md. Manifests have it. */
export interface RowsCsv {
  postgres: string
  duckdb: string
}

/** @param file the name of the Parquet file, without a directory */
export function rowsCsv(partition: string, file: string, columns: Column[]): RowsCsv {
  return {
    postgres:
      `set client_encoding = 'UTF8'; set timezone = 'UTC'; set datestyle = 'ISO'; ` +
      `${copyOfRows(`fleet_detached.${identifier(partition)}`, columns)};`,
    duckdb:
      `set TimeZone = 'UTC'; set preserve_insertion_order = true; ` +
      `copy (select ${duckdbValues(columns)} from read_parquet(${literal(file)})) to 'rows.csv' (${duckdbOptions(columns)});`,
  }
}

/** Hashes the rows of a table as `rows_sha256` does. Returns the SHA-256 in hex. */
export async function hashRows(database: Database, table: string, columns: Column[], signal?: AbortSignal) {
  const session = await openSession(database, signal)
  const { sql } = session
  try {
    const rows = await sql.unsafe(copyOfRows(table, columns)).readable()
    const hash = createHash('sha256')
    try {
      await feed(rows, new Writable({ write: (_chunk, _encoding, done) => done() }), { hash })
    } catch (error) {
      await session.discard(rows)
      throw error
    }
    session.release(rows)
    // Fails if the server ended the COPY too early.
    await sql`select 1`
    signal?.throwIfAborted()
    return hash.digest('hex')
  } finally {
    await session.close()
  }
}
