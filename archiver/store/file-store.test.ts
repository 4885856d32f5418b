import { mkdir, readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import t from 'tap'
import { hashFile } from '../archive/hash.ts'
import { ObjectMissing } from './object-missing.ts'
import { locate, openStore } from './open-store.ts'
import { makeDirectory } from '../../testing/archiver.ts'

t.test('objects are stored, read, listed and deleted by key', async t => {
  const directory = await makeDirectory(t)
  const store = await openStore(pathToFileURL(join(directory, 'an archive')).href)
  await store.check()
  await writeFile(join(directory, 'x'), 'hello')
  const sha256 = await hashFile(join(directory, 'x'))
  await store.put('a/b/x.parquet', join(directory, 'x'), sha256)
  await store.putBytes('a/c', Buffer.from('there'))
  t.same(await store.getToFile('a/b/x.parquet', join(directory, 'y')), { bytes: 5, sha256 })
  t.equal(String(await store.getBytes('a/c')), 'there')
  t.same(await store.head('a/b/x.parquet'), { key: 'a/b/x.parquet', bytes: 5 })
  const keys = []
  for await (const { key } of store.list('a/')) keys.push(key)
  t.same(keys, ['a/b/x.parquet', 'a/c'])
  await store.delete('a/c')
  await store.delete('a/c')
  t.equal(await store.head('a/c'), undefined)
})

t.test('a missing object is an ObjectMissing that names it', async t => {
  const directory = await makeDirectory(t)
  const store = await openStore(pathToFileURL(directory).href)
  await t.rejects(store.getBytes('a/b'), new ObjectMissing(`${store.url}/a/b`))
  await t.rejects(store.getToFile('a/b', join(directory, 'copy')), { message: /a\/b: there is no such object/ })
  t.same(await readdir(directory), [])
  for await (const found of store.list('')) t.fail(found.key)
})

t.test('a file that changed on the way is not stored, and the remains of a killed writer are removed', async t => {
  const directory = await makeDirectory(t)
  const store = await openStore(pathToFileURL(join(directory, 'archive')).href)
  await writeFile(join(directory, 'x'), 'hello')
  await mkdir(join(directory, 'archive/a'), { recursive: true })
  await writeFile(join(directory, 'archive/a/.x.012345.part'), 'hel')
  await t.rejects(store.put('a/x', join(directory, 'x'), '0'.repeat(64)), {
    message: /could not be written/,
    cause: /nothing was stored/,
  })
  t.same(await readdir(join(directory, 'archive/a')), [])
})

t.test('an object in another store than the current one is still found', async t => {
  const current = await openStore('file:///archive')
  t.equal((await locate('file:///archive/a/b.parquet', current)).key, 'a/b.parquet')
  const other = await locate('s3://bucket/prefix/device_heartbeats/date=2026-08-15/b.parquet', current)
  t.same([other.store.url, other.key], ['s3://bucket/prefix', 'device_heartbeats/date=2026-08-15/b.parquet'])
})
