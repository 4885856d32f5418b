import { mkdtemp, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { checkChain } from './chain.ts'
import { recordColumns } from './columns.ts'
import { describeError } from '../../lib/errors.ts'
import { checkPlace, keysOf, listManifests, type Manifest, requireManifest, ROOT } from './manifest.ts'
import { plainColumns } from './parquet.ts'
import { readBack } from './proof.ts'
import { listArchives } from './verify.ts'
import type { Worker } from '../context.ts'

/**
 * Registers every archive in the store in a database that did not write it, for example after the loss of the one that did.
 * Each archive is first read back and proven against its manifest, and if a key is trusted, against those of other days.
 * @param onArchive is called before each archive is read
 * @returns how many were registered, how many the database already knew, and a sentence for each fault
 */
export async function registerArchives(worker: Worker, onArchive: (manifest: Manifest) => void) {
  const { sql, store } = worker
  const known = new Map((await listArchives(worker)).map(archive => [archive.archive_url, archive]))
  const faults: string[] = []
  let registered = 0
  let alreadyKnown = 0
  const chain = await checkChain(store)
  const days = await listManifests(store)
  for (const day of days.keys()) {
    try {
      // By its day, because it may have been moved since the store was listed.
      const { key: foundAt, manifest } = await requireManifest(store, `${ROOT}date=${day}/any.parquet`)
      checkPlace(store, foundAt, manifest)
      const doubt = chain.find(({ about }) => about === day)
      if (doubt) throw new Error(doubt.fault)
      const { parquet } = keysOf(manifest.range_start, manifest.range_end, manifest.revision)
      const url = `${store.url}/${parquet}`
      const archive = known.get(url)
      const isForgotten = archive?.state === 'dropped' && archive.row_count === '0' && manifest.row_count > 0
      if (archive?.checksum_sha256 === manifest.sha256 && !isForgotten) {
        await recordColumns(sql, manifest.partition, manifest)
        alreadyKnown++
        continue
      }
      onArchive(manifest)
      const work = await mkdtemp(join(worker.directory, 'register-'))
      try {
        await readBack(store, parquet, {}, work, async ({ content }) => {
          await sql`
            select fleet.register_archive(
              ${manifest.partition}, ${manifest.range_start}, ${manifest.range_end}, ${content.row_count},
              ${content.content_checksum ?? null}::text::numeric, ${content.min_ts}, ${content.max_ts}, ${url},
              ${manifest.sha256}, ${manifest.bytes}, ${sql.json(plainColumns(manifest.columns))}, ${manifest.columns_at},
              ${manifest.checksum_version ?? null}, ${manifest.format_version},
              ${content.rows_sha256 ?? null})`
        })
      } finally {
        await rm(work, { recursive: true, force: true })
      }
      registered++
    } catch (error) {
      faults.push(describeError(error))
    }
  }
  faults.push(...chain.flatMap(({ about, fault }) => (days.has(about) ? [] : [fault])))
  return { registered, alreadyKnown, faults }
}
