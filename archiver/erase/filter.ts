import { rm } from 'node:fs/promises'
import { ROWS_IN_GROUP } from '../archive/parquet.ts'
import { confine, literal, withDuckDB } from '../duckdb.ts'
import { isoMicros } from '../archive/iso-micros.ts'

/** The condition for the rows of these devices. The ids are numbers of Postgres, as text. */
export function isOf(deviceIds: readonly string[]) {
  for (const id of deviceIds) if (!/^-?\d+$/.test(id)) throw new Error(`${id}: this is not the id of a device`)
  return `device_id in (${deviceIds.join(', ')})`
}

/** The condition for all other rows. */
export function isNotOf(deviceIds: readonly string[]) {
  return `(${isOf(deviceIds)}) is not true`
}

/**
 * Counts the rows of devices in a Parquet file. Its rows are sorted by device, so DuckDB opens only the row groups whose statistics
 * say that they may have one of them.
 */
export async function countDevices(file: string, deviceIds: readonly string[], work: string) {
  return await withDuckDB(work, '128MB', async duckdb => {
    await confine(duckdb, { files: [file] })
    const result = await duckdb
      .runAndReadAll(`select count(*)::varchar from read_parquet(${literal(file)}) where ${isOf(deviceIds)}`)
      .catch((cause: unknown) => {
        throw new Error(`${file}: DuckDB cannot read it as an archive`, { cause })
      })
    return Number(result.getRows()[0]?.[0])
  })
}

/**
 * Splits a Parquet file into the rows of some devices and the others, each in the order of the file. All of it is written again: a
 * Parquet file has no place that could be cut out, and DuckDB does not copy row groups without decoding them.
 * @returns what is in the file of the others
 */
export async function splitParquet(
  file: string,
  to: { kept: string; erased: string },
  deviceIds: readonly string[],
  work: string,
): Promise<{ kept: number; erased: number; min_ts: string | null; max_ts: string | null }> {
  await Promise.all([to.kept, to.erased].map(path => rm(path, { force: true })))
  // One thread, as for the export: the rows stay in their order, and the memory does not grow with the file.
  return await withDuckDB(
    work,
    '128MB',
    async duckdb => {
      await confine(duckdb, { directories: [work] })
      try {
        const copy = async (path: string, condition: string) => {
          const { rowsChanged } = await duckdb.run(
            `copy (select * from read_parquet(${literal(file)}) where ${condition}) to ${literal(path)} ` +
              `(format parquet, compression zstd, row_group_size ${ROWS_IN_GROUP})`,
          )
          return rowsChanged
        }
        const erased = await copy(to.erased, isOf(deviceIds))
        const kept = await copy(to.kept, isNotOf(deviceIds))
        const times = await duckdb.runAndReadAll(
          `select min(ts)::varchar, max(ts)::varchar from read_parquet(${literal(file)}) where ${isNotOf(deviceIds)}`,
        )
        const [min, max] = times.getRows()[0] as [string | null, string | null]
        return { kept, erased, min_ts: min === null ? null : isoMicros(min), max_ts: max === null ? null : isoMicros(max) }
      } catch (cause) {
        throw new Error(`${file}: DuckDB could not write it without the erased devices`, { cause })
      }
    },
    1,
  )
}
