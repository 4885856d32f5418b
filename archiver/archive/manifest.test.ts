import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import t from 'tap'
import { isoMicros } from './iso-micros.ts'
import { FORMAT_VERSION, keysOf, makeManifest, parseManifest, readManifest, rebuildIndex, writeManifest } from './manifest.ts'
import { openStore } from '../store/open-store.ts'
import { makeDirectory } from '../../testing/archiver.ts'
import { repository } from '../../lib/repository.ts'

const manifest = makeManifest({
  partition: 'device_heartbeats_p2026_08_15',
  range_start: '2026-08-15 00:00:00+00',
  range_end: '2026-08-16 00:00:00+00',
  content: {
    row_count: 2,
    rows_sha256: 'cd'.repeat(32),
    min_ts: '2026-08-15T00:00:00.000001Z',
    max_ts: '2026-08-15T01:00:00.000000Z',
  },
  columns: [{ name: 'ts', type: 'timestamp with time zone' }],
  columns_at: '2026-11-01 02:00:00.5+00',
  parquetKey: 'device_heartbeats/date=2026-08-15/device_heartbeats_20260815.parquet',
  bytes: 100,
  sha256: 'ab'.repeat(32),
  previous: null,
  history: [],
})

t.test('a day is in its folder, and a month in that of its first day', async t => {
  t.same(keysOf('2026-08-15 00:00:00+00', '2026-08-16 00:00:00+00'), {
    folder: 'device_heartbeats/date=2026-08-15/',
    parquet: 'device_heartbeats/date=2026-08-15/device_heartbeats_20260815.parquet',
    manifest: 'manifests/date=2026-08-15/manifest.json',
    oldManifest: 'device_heartbeats/date=2026-08-15/manifest.json',
  })
  t.equal(
    keysOf('2026-08-01 00:00:00+00', '2026-09-01 00:00:00+00').parquet,
    'device_heartbeats/date=2026-08-01/device_heartbeats_202608.parquet',
  )
  t.match(keysOf('2026-08-15 00:00:00+00', '2026-08-16 00:00:00+00', 3), {
    parquet: 'device_heartbeats/date=2026-08-15/device_heartbeats_20260815_r3.parquet',
    manifest: 'manifests/date=2026-08-15/manifest.json',
  })
  t.throws(() => keysOf('2026-08-15 05:00:00+00', '2026-08-16 05:00:00+00'), /UTC midnights/)
})

t.test('timestamps keep their microseconds', async t => {
  t.equal(isoMicros('2026-08-15 00:00:00+00'), '2026-08-15T00:00:00.000000Z')
  t.equal(isoMicros('2026-08-15 23:59:59.1+00'), '2026-08-15T23:59:59.100000Z')
  t.equal(isoMicros('2026-08-15T23:59:59.000009Z'), '2026-08-15T23:59:59.000009Z')
  t.throws(() => isoMicros('2026-08-15 00:00:00+02'), /expected a UTC timestamp/)
})

t.test('a manifest is read as it was written; one that was not written is undefined', async t => {
  const store = await openStore(pathToFileURL(await makeDirectory(t)).href)
  t.equal(await readManifest(store, 'manifest.json'), undefined)
  await writeManifest(store, 'manifest.json', manifest)
  t.same(await readManifest(store, 'manifest.json'), manifest)
})

t.test('the error names each field at fault', async t => {
  const parse = (change: object) => () => parseManifest('file:///m', Buffer.from(JSON.stringify({ ...manifest, ...change })))
  t.throws(parse({ sha256: 'short', row_count: -1 }), /file:\/\/\/m: the manifest is not valid: row_count: .*; sha256: /)
  for (const format_version of [0, '1', null, 1.5]) t.throws(parse({ format_version }), /not valid: format_version/)
  t.throws(parse({ file: '../other.parquet' }), /file/)
  t.throws(
    parse({ file: 'device_heartbeats_20260816.parquet' }),
    /the file of 2026-08-15T00:00:00.000000Z to .* is device_heartbeats_20260815.parquet, not/,
  )
  t.throws(parse({ partition: '../../etc/x' }), /partition: expected the name of a partition/)
  t.throws(() => parseManifest('file:///m', Buffer.from('{"')), /is not JSON/)
})

t.test('a manifest of every format that was ever written is read', async t => {
  const fixtures = join(repository, 'archiver/archive/fixtures')
  const formats = new Set<number>()
  for (const name of (await readdir(fixtures)).filter(name => name.endsWith('.json'))) {
    const bytes = await readFile(join(fixtures, name))
    const read = parseManifest(name, bytes)
    const { format_version } = JSON.parse(bytes.toString()) as { format_version: number }
    formats.add(format_version)
    t.equal(name.startsWith(`manifest-${format_version}`), true)
    t.match(read, {
      partition: 'device_heartbeats_p2026_08_15',
      row_count: Number,
      ...(format_version < 3
        ? { content_checksum: '1660206966633859645440000' }
        : { rows_sha256: /^[0-9a-f]{64}$/, rows_csv: { postgres: /^set /, duckdb: /^set / } }),
    })
    if (format_version === FORMAT_VERSION) t.same(read, JSON.parse(bytes.toString()), `${name}: no field is lost`)
  }
  t.same(
    [...formats].sort(),
    Array.from({ length: FORMAT_VERSION }, (_, n) => n + 1),
    'there is one manifest of each format',
  )
})

t.test('a manifest of format 1 is read like a current one', async t => {
  const bytes = await readFile(join(repository, 'archiver/archive/fixtures/manifest-1.json'))
  const { columns_at, checksum_version, superseded, ...rest } = parseManifest('m', bytes)
  t.same(rest, JSON.parse(bytes.toString()), 'no field is lost')
  t.same(
    { columns_at, checksum_version, superseded },
    { columns_at: '2026-11-13T02:00:41.118000Z', checksum_version: 1, superseded: undefined },
  )
})

t.test('a manifest of a newer format is refused, whatever else it says', async t => {
  const newer = { format_version: FORMAT_VERSION + 1, unheard: 'of' }
  t.throws(() => parseManifest('s3://b/m', Buffer.from(JSON.stringify(newer))), {
    message: new RegExp(
      '^s3://b/m: the manifest has format 5, and this version \\(\\d+\\.\\d+\\.\\d+\\) reads formats up to 4; ' +
        'a newer version wrote it, use that one$',
    ),
  })
})

t.test('the index is made from the manifests, and those that cannot be read are reported', async t => {
  const store = await openStore(pathToFileURL(await makeDirectory(t)).href)
  await writeManifest(store, 'manifests/date=2026-08-16/manifest.json', {
    ...manifest,
    range_start: '2026-08-16T00:00:00.000000Z',
    range_end: '2026-08-17T00:00:00.000000Z',
    file: 'device_heartbeats_20260816.parquet',
  })
  await writeManifest(store, 'device_heartbeats/date=2026-08-15/manifest.json', manifest)
  await writeManifest(store, 'manifests/date=2026-08-14/manifest.json', manifest)
  await store.putBytes('device_heartbeats/index.json', Buffer.from('{}'))
  await store.putBytes('manifests/date=2026-08-17/manifest.json', Buffer.from('{'))
  const { count, faults } = await rebuildIndex(store)
  t.equal(count, 2)
  t.match(faults.sort(), [
    /date=2026-08-14\/manifest.json: the manifest is for 2026-08-15T00:00:00.000000Z, whose place is/,
    /date=2026-08-17\/manifest.json: the manifest is not JSON/,
  ])
  t.equal(await store.head('device_heartbeats/index.json'), undefined, 'the one of an older version is deleted')
  const index = JSON.parse(String(await store.getBytes('index.json'))) as unknown
  t.match(index, {
    format_version: 1,
    archives: [
      {
        path: 'device_heartbeats/date=2026-08-15/device_heartbeats_20260815.parquet',
        row_count: 2,
        rows_sha256: 'cd'.repeat(32),
        manifest: 'device_heartbeats/date=2026-08-15/manifest.json',
      },
      { range_start: '2026-08-16T00:00:00.000000Z' },
    ],
  })
})
