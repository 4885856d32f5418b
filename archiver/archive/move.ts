import { mkdtemp, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { describeError } from '../../lib/errors.ts'
import { ObjectMissing } from '../store/object-missing.ts'
import type { Store } from '../store/store.ts'
import type { Worker } from '../context.ts'
import { withIndexLock } from './index-lock.ts'
import { checkPlace, keysOf, OLD_SUPERSEDED, parseManifest, readManifest, ROOT, SUPERSEDED, type Manifest } from './manifest.ts'

/**
 * Moves what versions before manifest format 4 stored among the Parquet files: manifests, and superseded files with theirs. Each
 * is written to its new place, read back and compared before the old one is deleted, so this can be repeated after a kill.
 * @returns how many objects were moved, and a sentence for each that was not
 */
export async function moveOldObjects(worker: Worker, onMove: (key: string) => void) {
  const { store } = worker
  const faults: string[] = []
  let moved = 0
  const found: string[] = []
  for await (const { key } of store.list(ROOT)) {
    if (key.startsWith(OLD_SUPERSEDED) || /^device_heartbeats\/date=[^/]+\/manifest\.json$/.test(key)) found.push(key)
  }
  for (const key of found) {
    onMove(key)
    try {
      if (key.startsWith(OLD_SUPERSEDED)) {
        await withIndexLock(worker.database, `${store.url}/${key}: not moved`, async () => {
          const day = /date=(\d{4}-\d\d-\d\d)\//.exec(key)?.[1]
          if (day !== undefined)
            await refuseIfBusy(worker, key, { range_start: `${day}T00:00:00Z`, range_end: `${day}T00:00:00Z` })
          await moveFile(worker, key, `${SUPERSEDED}${key.slice(OLD_SUPERSEDED.length)}`)
        })
      } else await moveManifest(worker, key)
      moved++
    } catch (error) {
      faults.push(describeError(error))
    }
  }
  return { moved, faults }
}

/** An archiver that archives this day again holds the same lock while it writes its manifest, and its day is known to be busy. */
async function moveManifest(worker: Worker, key: string) {
  const { store, database } = worker
  await withIndexLock(database, `${store.url}/${key}: not moved`, async () => {
    const bytes = await bytesAt(store, key)
    if (!bytes) return
    const manifest = parseManifest(`${store.url}/${key}`, bytes)
    checkPlace(store, key, manifest)
    const to = keysOf(manifest.range_start, manifest.range_end).manifest
    await refuseIfBusy(worker, key, manifest)
    const there = await bytesAt(store, to)
    if (there && !there.equals(bytes)) return await deleteReplaced(worker, key, to, manifest)
    if (!there) await store.putBytes(to, bytes)
    if (!(await bytesAt(store, to))?.equals(bytes))
      throw new Error(`${store.url}/${to}: the copy differs from ${store.url}/${key}, which is kept`)
    await store.delete(key)
  })
}

/** The day was archived again, and the run died before it deleted the manifest that it had replaced. */
async function deleteReplaced({ sql, store }: Worker, key: string, to: string, { range_start }: Manifest) {
  const current = await readManifest(store, to)
  const [archive] = await sql<{ checksum_sha256: string }[]>`
    select checksum_sha256 from fleet.archives where range_start = ${range_start}::timestamptz`
  if (archive === undefined || archive.checksum_sha256 !== current?.sha256) {
    throw new Error(
      `${store.url}/${key}: kept, because ${store.url}/${to} is another manifest of this day, and the database does not know ` +
        'its archive as proven',
    )
  }
  await store.delete(key)
}

async function refuseIfBusy(
  { sql, store }: Worker,
  key: string,
  { range_start, range_end }: Pick<Manifest, 'range_start' | 'range_end'>,
) {
  const [busy] = await sql<{ partition_name: string; state: string }[]>`
    select p.partition_name, case when e.partition_name is null then p.state else 'losing an erased device' end as state
    from fleet.hb_partitions p
    left join fleet.partitions_being_erased() e using (partition_name)
    where (p.state in ('detached', 'archiving', 'archive_failed') or e.partition_name is not null)
      and p.range_start < greatest(${range_end}::timestamptz, ${range_start}::timestamptz + interval '1 microsecond')
      and p.range_end > ${range_start}::timestamptz`
  if (busy) {
    throw new Error(
      `${store.url}/${key}: not moved, because ${busy.partition_name} is ${busy.state}; run reindex again afterwards`,
    )
  }
}

/** Moves an object that nobody writes any more. */
async function moveFile({ store, directory }: Worker, key: string, to: string) {
  const work = await mkdtemp(join(directory, 'move-'))
  try {
    const original = await store.getToFile(key, join(work, 'original')).catch(ifMissing)
    if (!original) return
    const is = (copy: typeof original | undefined) => copy?.bytes === original.bytes && copy.sha256 === original.sha256
    const there = await store.getToFile(to, join(work, 'there')).catch(ifMissing)
    if (there && !is(there)) throw new Error(`${store.url}/${key}: not moved, because ${store.url}/${to} is another object`)
    if (!there) {
      await store.put(to, join(work, 'original'), original.sha256)
      if (!is(await store.getToFile(to, join(work, 'copy'))))
        throw new Error(`${store.url}/${to}: the copy differs from ${store.url}/${key}, which is kept`)
    }
    await store.delete(key)
  } finally {
    await rm(work, { recursive: true, force: true })
  }
}

async function bytesAt(store: Store, key: string) {
  return await store.getBytes(key).catch(ifMissing)
}

function ifMissing(error: unknown) {
  if (error instanceof ObjectMissing) return undefined
  throw error
}
