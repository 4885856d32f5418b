import { z } from 'zod'
import { version } from '../../lib/version.ts'
import { describeError } from '../../lib/errors.ts'
import { ObjectMissing } from '../store/object-missing.ts'
import { isoMicros } from './iso-micros.ts'
import { checkSignature, manifestHash, manifestText, readPublicKeys, without } from './signature.ts'
import { plainColumns, type Column, type Content } from './parquet.ts'
import { rowsCsv } from './rows-csv.ts'
import type { Store } from '../store/store.ts'

const timestamp = z
  .string()
  .regex(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$/, 'expected UTC with microseconds, like 2026-08-15T00:00:00.000000Z')

/** The format that is written. A new one needs a reader in `readers` and a manifest in fixtures/; the older ones stay there. */
export const FORMAT_VERSION = 4

const format1 = z.object({
  format_version: z.literal(1),
  /** It becomes the name of a table, and part of the names of files. */
  partition: z.string().regex(/^\w{1,63}$/, 'expected the name of a partition'),
  range_start: timestamp,
  range_end: timestamp,
  min_ts: timestamp.nullable(),
  max_ts: timestamp.nullable(),
  row_count: z.int().nonnegative(),
  /** The Parquet file in the same folder. */
  file: z.string().regex(/^\w+\.parquet$/, 'expected the name of a Parquet file, without a directory'),
  bytes: z.int().positive(),
  sha256: z.string().regex(/^[0-9a-f]{64}$/),
  /** A decimal string, because it exceeds 2^53. */
  content_checksum: z.string().regex(/^\d+$/),
  columns: z.array(z.object({ name: z.string(), type: z.string() })).min(1),
  /** For an archive that was made again with more rows: its revision number, and the SHA-256 of the file that it replaces. */
  revision: z.int().min(2).optional(),
  replaces: z
    .string()
    .regex(/^[0-9a-f]{64}$/)
    .optional(),
  created_at: z.iso.datetime(),
  software_version: z.string(),
})

const format2 = format1.extend({
  format_version: z.literal(2),
  /** The version of the definition of content_checksum. */
  checksum_version: z.int().positive(),
  /** When the table had these columns. Later renames may have given some of them other names. */
  columns_at: timestamp,
  /**
   * Files of earlier revisions with columns that the table no longer had when this revision was made. Nothing else holds
   * their values, so they are kept, each with its manifest, under supersededKeys(). `columns` has the names of these columns in
   * the file.
   */
  superseded: z
    .array(
      z.object({
        file: z.string().regex(/^\w+\.parquet$/, 'expected the name of a Parquet file, without a directory'),
        bytes: z.int().positive(),
        sha256: z.string().regex(/^[0-9a-f]{64}$/),
        columns: z.array(z.string()),
      }),
    )
    .optional(),
})

const format3 = format2.omit({ content_checksum: true, checksum_version: true }).extend({
  format_version: z.literal(3),
  /** SHA-256 of the rows as CSV, the same from Postgres and from DuckDB. */
  rows_sha256: z.string().regex(/^[0-9a-f]{64}$/),
  /** The SQL for it, for people. Nothing here executes it. */
  rows_csv: z.object({ postgres: z.string(), duckdb: z.string() }),
})

const sha256 = z.string().regex(/^[0-9a-f]{64}$/)

/** The manifest is no longer among the Parquet files, and names the one of the day before. */
const format4 = format3.extend({
  format_version: z.literal(4),
  /** The nearest earlier day of the store when this was written, and the SHA-256 of its manifest; null for the first. */
  previous: z.object({ range_start: timestamp, manifest_sha256: sha256 }).nullable(),
  /** The manifests of this day that this one replaces, oldest first: the SHA-256 of each and of its file, when, and why. */
  history: z.array(z.object({ manifest_sha256: sha256, sha256, at: z.iso.datetime(), reason: z.string().min(1).max(200) })),
  /** See signature.ts. */
  signature: z.object({ key: sha256, ed25519: z.string().regex(/^[A-Za-z0-9+/]{86}==$/) }).optional(),
})

/** The manifest of an archive has either rows_sha256 and rows_csv, or, in formats 1 and 2, content_checksum and its version. */
export type Manifest = Omit<z.infer<typeof format4>, 'format_version' | 'rows_sha256' | 'rows_csv' | 'previous' | 'history'> & {
  format_version: number
} & Partial<Pick<z.infer<typeof format4>, 'rows_sha256' | 'rows_csv' | 'previous' | 'history'>> &
  Partial<Pick<z.infer<typeof format2>, 'content_checksum' | 'checksum_version'>>
export type History = NonNullable<Manifest['history']>
export type Superseded = NonNullable<Manifest['superseded']>[number]

/** For each format that was ever written: a reader that converts it to the current format. */
const readers: Record<number, z.ZodType<Manifest>> = {
  1: format1.transform(manifest => ({ ...manifest, checksum_version: 1, columns_at: isoMicros(manifest.created_at) })),
  2: format2,
  3: format3,
  4: format4,
}

/** Only Parquet files are below this, so that query engines read the folder as a table. */
export const ROOT = 'device_heartbeats/'
export const MANIFESTS = 'manifests/'
export const SUPERSEDED = 'superseded/'
const INDEX_KEY = 'index.json'

/** Versions before format 4 stored these among the Parquet files. `npm run archive -- reindex` moves them. */
export const OLD_SUPERSEDED = `${ROOT}superseded/`
/** Where superseded files may be; the first place counts. */
export const SUPERSEDED_ROOTS = [SUPERSEDED, OLD_SUPERSEDED]
const OLD_INDEX_KEY = `${ROOT}index.json`

/**
 * The keys of a partition's archive, by its range (never by its name, because pg_partman's versions use different names).
 * A day: `device_heartbeats/date=2026-08-15/device_heartbeats_20260815.parquet` and `manifests/date=2026-08-15/manifest.json`. A month is under its first day, with the month in the
 * file's name: `date=2026-08-01/device_heartbeats_202608.parquet`. Ranges do not overlap, so no two archives share a
 * folder. A day that was restored and gained rows gets a new file when it is archived again, and the manifest says which
 * file counts: `device_heartbeats_20260815_r2.parquet`. `oldManifest` is where versions before format 4 stored the manifest.
 */
export function keysOf(range_start: string, range_end: string, revision = 1) {
  const start = isoMicros(range_start)
  const end = isoMicros(range_end)
  const midnight = 'T00:00:00.000000Z'
  if (!start.endsWith(midnight) || !end.endsWith(midnight)) {
    throw new Error(
      `the range ${range_start} to ${range_end} does not begin and end at UTC midnights; the archive has one folder per day`,
    )
  }
  const date = start.slice(0, 10)
  const days = (Date.parse(end) - Date.parse(start)) / 86_400_000
  const name = days === 1 ? date.replaceAll('-', '') : date.slice(0, 7).replace('-', '')
  const folder = `${ROOT}date=${date}/`
  const suffix = revision === 1 ? '' : `_r${revision}`
  return {
    folder,
    parquet: `${folder}device_heartbeats_${name}${suffix}.parquet`,
    manifest: `${MANIFESTS}date=${date}/manifest.json`,
    oldManifest: `${folder}manifest.json`,
  }
}

/**
 * Where an earlier revision is kept if it holds more than the current one.
 * @param root OLD_SUPERSEDED for the place where versions before format 4 kept it
 */
export function supersededKeys(range_start: string, file: string, root = SUPERSEDED) {
  const folder = `${root}date=${isoMicros(range_start).slice(0, 10)}/`
  const parquet = `${folder}${file}`
  return { folder, parquet, manifest: supersededManifestKey(parquet) }
}

function supersededManifestKey(parquet: string) {
  return `${parquet.replace(/\.parquet$/, '')}.manifest.json`
}

/** The keys at which the manifest of a Parquet file may be; the first one that exists counts. */
function manifestKeysOf(parquet: string) {
  const root = SUPERSEDED_ROOTS.find(root => parquet.startsWith(root))
  // In both places, because `npm run archive -- reindex` may have been killed between a file and its manifest.
  if (root !== undefined) return SUPERSEDED_ROOTS.map(other => supersededManifestKey(`${other}${parquet.slice(root.length)}`))
  const [, folder, date] = /^(device_heartbeats\/date=(\d{4}-\d\d-\d\d)\/)[^/]+$/.exec(parquet) ?? []
  if (folder === undefined) throw new Error(`${parquet}: expected the key of an archive, like ${ROOT}date=2026-08-15/….parquet`)
  return [`${MANIFESTS}date=${date}/manifest.json`, `${folder}manifest.json`]
}

/** The superseded file of a day, in its place or in that of older versions. Undefined if it is in neither. */
export async function findSuperseded(store: Store, range_start: string, file: string, signal?: AbortSignal) {
  for (const root of SUPERSEDED_ROOTS) {
    const found = await store.head(supersededKeys(range_start, file, root).parquet, signal)
    if (found) return found
  }
  return undefined
}

export interface ManifestInput {
  partition: string
  range_start: string
  range_end: string
  content: Omit<Content, 'content_checksum'> & { rows_sha256: string }
  columns: Column[]
  columns_at: string
  parquetKey: string
  bytes: number
  sha256: string
  /** For a revision: its number, and the SHA-256 of the file that it replaces. */
  revision?: number | undefined
  replaces?: string | undefined
  superseded?: Superseded[] | undefined
  previous: NonNullable<Manifest['previous']> | null
  history: History
}

export function makeManifest(input: ManifestInput): Manifest {
  const {
    partition,
    range_start,
    range_end,
    content,
    columns,
    columns_at,
    parquetKey,
    bytes,
    sha256,
    revision,
    replaces,
    superseded,
    previous,
    history,
  } = input
  const file = parquetKey.slice(parquetKey.lastIndexOf('/') + 1)
  return {
    format_version: FORMAT_VERSION,
    partition,
    range_start: isoMicros(range_start),
    range_end: isoMicros(range_end),
    min_ts: content.min_ts,
    max_ts: content.max_ts,
    row_count: content.row_count,
    file,
    bytes,
    sha256,
    rows_sha256: content.rows_sha256,
    rows_csv: rowsCsv(partition, file, columns),
    columns: plainColumns(columns),
    columns_at: isoMicros(columns_at),
    ...(revision === undefined ? {} : { revision, replaces }),
    ...(superseded === undefined || superseded.length === 0 ? {} : { superseded }),
    previous,
    history,
    created_at: new Date().toISOString(),
    software_version: version,
  }
}

/**
 * Reads a manifest of this or an older format.
 * @throws an error that names the object and each field at fault
 */
export function parseManifest(url: string, bytes: Uint8Array): Manifest {
  let value: unknown
  try {
    value = JSON.parse(Buffer.from(bytes).toString('utf8'))
  } catch (cause) {
    throw new Error(`${url}: the manifest is not JSON`, { cause })
  }
  const format = (value as { format_version?: unknown } | null)?.format_version
  if (Number.isInteger(format) && Number(format) > FORMAT_VERSION) {
    throw new Error(
      `${url}: the manifest has format ${Number(format)}, and this version (${version}) reads formats up to ${FORMAT_VERSION}; ` +
        'a newer version wrote it, use that one',
    )
  }
  const parsed = (readers[Number(format)] ?? format4).safeParse(value)
  if (!parsed.success) {
    const faults = parsed.error.issues.map(issue => `${issue.path.join('.') || 'manifest'}: ${issue.message}`)
    throw new Error(`${url}: the manifest is not valid: ${faults.join('; ')}`)
  }
  const { range_start, range_end, revision, file } = parsed.data
  const { folder, parquet } = keysOf(range_start, range_end, revision)
  if (parquet !== `${folder}${file}`) {
    throw new Error(
      `${url}: the manifest is not valid: ` +
        `the file of ${range_start} to ${range_end} is ${parquet.slice(folder.length)}, not ${file}`,
    )
  }
  return parsed.data
}

/** A manifest, the key at which it was found, and its bytes there. */
export interface FoundManifest {
  key: string
  manifest: Manifest
  bytes: Buffer
}

/**
 * Reads the manifest at this key. Undefined if there is none, and so no archive.
 * @throws if it cannot be read, or if the store has trusted keys and its signature is none of theirs
 */
export async function readManifest(store: Store, key: string, signal?: AbortSignal): Promise<Manifest | undefined> {
  return (await readStored(store, key, signal))?.manifest
}

/** The same, with its bytes. */
export async function readStored(store: Store, key: string, signal?: AbortSignal): Promise<FoundManifest | undefined> {
  let bytes
  try {
    bytes = await store.getBytes(key, signal)
  } catch (error) {
    if (error instanceof ObjectMissing) return undefined
    throw error
  }
  const url = `${store.url}/${key}`
  const manifest = parseManifest(url, bytes)
  checkSignature(url, bytes, manifest.signature, store.signing)
  return { key, manifest, bytes }
}

/** Reads the manifest of a Parquet file, in its place or in that of older versions. Undefined if there is none. */
export async function findManifest(store: Store, parquet: string, signal?: AbortSignal): Promise<FoundManifest | undefined> {
  const keys = manifestKeysOf(parquet)
  // The first place once more at the end, because the manifest may have been moved there meanwhile.
  for (const key of keys.length > 1 ? [...keys, keys[0]!] : keys) {
    const found = await readStored(store, key, signal)
    if (found) return found
  }
  return undefined
}

/** The same, where there must be one. @throws {ObjectMissing} */
export async function requireManifest(store: Store, parquet: string, signal?: AbortSignal): Promise<FoundManifest> {
  const found = await findManifest(store, parquet, signal)
  if (!found) throw new ObjectMissing(`${store.url}/${manifestKeysOf(parquet)[0]}`)
  return found
}

/** The keys of the manifests of all archives in the store, by their day, in order. One in its place counts before an older one. */
export async function listManifests(store: Store, signal?: AbortSignal): Promise<Map<string, string>> {
  const keys: [day: string, key: string][] = []
  for (const root of [ROOT, MANIFESTS]) {
    for await (const { key } of store.list(`${root}date=`, signal)) {
      const [, day] = /^\w+\/date=(\d{4}-\d\d-\d\d)\/manifest\.json$/.exec(key) ?? []
      if (day !== undefined) keys.push([day, key])
    }
  }
  return new Map([...new Map(keys)].sort(([a], [b]) => (a < b ? -1 : 1)))
}

/** @throws unless the manifest was found in the place of its day */
export function checkPlace(store: Store, key: string, { range_start, range_end }: Manifest) {
  const { manifest, oldManifest } = keysOf(range_start, range_end)
  if (key !== manifest && key !== oldManifest)
    throw new Error(`${store.url}/${key}: the manifest is for ${range_start}, whose place is ${store.url}/${manifest}`)
}

/** Writes the manifest, signed if the store has a key. From then on the archive exists. */
export async function writeManifest(store: Store, key: string, manifest: Manifest, signal?: AbortSignal) {
  await store.putBytes(key, Buffer.from(manifestText(without(manifest, 'signature'), store.signing?.signer)), signal)
}

/**
 * Makes and writes the manifest of a day: it names the day before, and what it replaces. One that says the same as the one that
 * is there is written with the same bytes again.
 * @param replaced the manifest of this day that is in the store
 * @param reason why it is replaced, in a few words
 * @returns the key at which it is now
 */
export async function commitManifest(
  store: Store,
  input: Omit<ManifestInput, 'previous' | 'history'>,
  replaced: FoundManifest | undefined,
  reason: string,
  signal?: AbortSignal,
) {
  const key = keysOf(input.range_start, input.range_end).manifest
  const manifest = makeManifest({
    ...input,
    previous: await previousOf(store, input.range_start, signal),
    history: [...(replaced?.manifest.history ?? []), ...(replaced ? [historyOf(replaced, reason)] : [])],
  })
  const { signer } = store.signing ?? {}
  const isSame = replaced?.key === key && claimsOf(replaced.manifest) === claimsOf(manifest)
  if (isSame && (!signer || replaced.manifest.signature)) await store.putBytes(key, replaced.bytes, signal)
  else await writeManifest(store, key, manifest, signal)
  return key
}

/** What the next manifest says about this one. */
export function historyOf({ bytes, manifest }: FoundManifest, reason: string): History[number] {
  return { manifest_sha256: manifestHash(bytes), sha256: manifest.sha256, at: new Date().toISOString(), reason }
}

/** What a manifest says about its archive, without what depends on when it was written. */
function claimsOf(manifest: Manifest) {
  const claims = without(manifest, 'created_at', 'software_version', 'previous', 'history', 'signature')
  // In the order of the fields, because a manifest that was read has them in the order of its format.
  return JSON.stringify(Object.entries(claims).sort(([a], [b]) => (a < b ? -1 : 1)))
}

/** Names the nearest earlier day of the store. Its manifest is not judged here; `verify` does that. */
async function previousOf(store: Store, range_start: string, signal?: AbortSignal): Promise<ManifestInput['previous']> {
  const day = isoMicros(range_start).slice(0, 10)
  for (let tried = 1; ; tried++) {
    const earlier = [...(await listManifests(store, signal))].filter(([other]) => other < day).at(-1)
    if (!earlier) return null
    try {
      const manifest_sha256 = manifestHash(await store.getBytes(earlier[1], signal))
      return { range_start: `${earlier[0]}T00:00:00.000000Z`, manifest_sha256 }
    } catch (error) {
      // It may have been moved since the store was listed.
      if (!(error instanceof ObjectMissing) || tried === 3) throw error
    }
  }
}

/** What a manifest and a row of hb_partitions both say about an archive. */
export type Claims = Partial<
  Pick<
    Manifest,
    | 'range_start'
    | 'range_end'
    | 'min_ts'
    | 'max_ts'
    | 'row_count'
    | 'bytes'
    | 'sha256'
    | 'rows_sha256'
    | 'content_checksum'
    | 'columns'
    | 'checksum_version'
  >
>

/** Describes for an error how two descriptions of one archive differ. Empty if they are equal. */
export function differences(expected: Claims, got: Claims) {
  return (Object.keys(expected) as (keyof Claims)[])
    .filter(field => claimText(expected[field]) !== claimText(got[field]))
    .map(field => `${field} should be ${claimText(expected[field])} and is ${claimText(got[field])}`)
    .join(', ')
}

function claimText(value: Claims[keyof Claims]) {
  return Array.isArray(value) ? value.map(({ name, type }) => `${name} ${type}`).join(', ') : String(value ?? 'null')
}

/**
 * Writes index.json again from the manifests, which alone decide what the archive holds, and deletes the one of older versions,
 * which would be in the way of query engines.
 * @returns how many archives it lists, and a sentence for each manifest that could not be read
 */
export async function rebuildIndex(store: Store, signal?: AbortSignal) {
  const faults: string[] = []
  const archives: object[] = []
  const signers = new Set<string>()
  const waiting = [...(await listManifests(store, signal)).values()]
  const read = async () => {
    for (let key = waiting.shift(); key !== undefined; key = waiting.shift()) {
      try {
        const manifest = await readManifest(store, key, signal)
        if (!manifest) continue
        checkPlace(store, key, manifest)
        if (manifest.signature) signers.add(manifest.signature.key)
        const { partition, range_start, range_end, min_ts, max_ts, row_count, bytes, sha256, file } = manifest
        const { rows_sha256, content_checksum } = manifest
        const path = `${keysOf(range_start, range_end).folder}${file}`
        archives.push({
          partition,
          range_start,
          range_end,
          min_ts,
          max_ts,
          row_count,
          bytes,
          sha256,
          rows_sha256,
          content_checksum,
          path,
          manifest: key,
        })
      } catch (error) {
        signal?.throwIfAborted()
        faults.push(describeError(error))
      }
    }
  }
  await Promise.all(Array.from({ length: 8 }, read))
  archives.sort((a, b) => ((a as Manifest).range_start < (b as Manifest).range_start ? -1 : 1))
  const keys = await publicKeys(store, signers, signal)
  await store.putBytes(INDEX_KEY, Buffer.from(`${JSON.stringify({ format_version: 1, keys, archives }, null, 2)}\n`), signal)
  if (await store.head(OLD_INDEX_KEY, signal)) await store.delete(OLD_INDEX_KEY, signal)
  return { count: archives.length, faults }
}

/** The public keys that signed a manifest, as far as they are known: from the settings, or from the index as it was. */
async function publicKeys(store: Store, ids: Set<string>, signal?: AbortSignal) {
  const known = new Map<string, string>()
  const before = await store.getBytes(INDEX_KEY, signal).catch((error: unknown) => {
    if (error instanceof ObjectMissing) return undefined
    throw error
  })
  for (const pem of pemsOf(before)) {
    try {
      for (const key of readPublicKeys(pem)) known.set(key.id, key.pem)
    } catch {
      // Anybody who may write to the store can write anything there. A key has to be what its id says.
    }
  }
  for (const { id, pem } of store.signing?.trusted.values() ?? []) known.set(id, pem)
  return [...ids].sort().flatMap(id => (known.has(id) ? [{ id, pem: known.get(id) }] : []))
}

function pemsOf(index: Buffer | undefined) {
  try {
    const { keys } = JSON.parse(String(index ?? '{}')) as { keys?: { pem: string }[] }
    return (keys ?? []).map(({ pem }) => String(pem))
  } catch {
    return []
  }
}
