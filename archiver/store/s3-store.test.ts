import { createHash, randomBytes } from 'node:crypto'
import { existsSync } from 'node:fs'
import { open, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import {
  CreateMultipartUploadCommand,
  ListMultipartUploadsCommand,
  PutBucketPolicyCommand,
  UploadPartCommand,
} from '@aws-sdk/client-s3'
import t, { type Test } from 'tap'
import { leftToCi } from '../../local/config.ts'
import { describeError } from '../../lib/errors.ts'
import { ObjectMissing } from './object-missing.ts'
import { partBytes } from './s3-store.ts'
import {
  openBucket,
  openWith,
  ownStore,
  withObjectStore,
  withoutOwnStore,
  withoutStore as skip,
  withProxy,
  withUser,
  type TestBucket,
} from '../../testing/s3.ts'
import { makeDirectory } from '../../testing/archiver.ts'

// The store is started by the first test that needs it.
t.setTimeout(600_000)

const MEBIBYTE = 2 ** 20

/** A new file of random bytes, and its SHA-256. */
async function makeFile(t: Test, bytes: number) {
  const file = join(await makeDirectory(t), 'file')
  const handle = await open(file, 'wx')
  const hash = createHash('sha256')
  for (let left = bytes; left > 0; left -= MEBIBYTE) {
    const chunk = randomBytes(Math.min(left, MEBIBYTE))
    hash.update(chunk)
    await handle.write(chunk)
  }
  await handle.close()
  return { file, bytes, sha256: hash.digest('hex') }
}

/** The messages of an error and its causes. */
async function complaint(work: Promise<unknown>) {
  return await work.then(() => 'no error', describeError)
}

async function unfinished({ client, bucket, url }: TestBucket) {
  const Prefix = new URL(url).pathname.slice(1)
  return (await client.send(new ListMultipartUploadsCommand({ Bucket: bucket, Prefix }))).Uploads ?? []
}

t.test('objects are stored, read, listed and deleted by key', { skip }, async t => {
  const store = openWith(t, await withObjectStore(t))
  await store.check()
  const { file, sha256 } = await makeFile(t, 3 * MEBIBYTE)
  await store.put('a/b/date=2026-08-15/x.parquet', file, sha256)
  await store.putBytes('a/c', Buffer.from('there'))
  await store.putBytes('a/empty', Buffer.alloc(0))
  t.same(await store.getToFile('a/b/date=2026-08-15/x.parquet', `${file}.copy`), { bytes: 3 * MEBIBYTE, sha256 })
  t.equal(String(await store.getBytes('a/c')), 'there')
  t.equal((await store.getBytes('a/empty')).length, 0)
  t.same(await store.head('a/c'), { key: 'a/c', bytes: 5 })
  const keys = []
  for await (const { key } of store.list('a/')) keys.push(key)
  t.same(keys, ['a/b/date=2026-08-15/x.parquet', 'a/c', 'a/empty'])
  await store.putBytes('a/c', Buffer.from('other'))
  t.equal(String(await store.getBytes('a/c')), 'other', 'a key that is stored again holds the last content')
  await store.delete('a/c')
  await store.delete('a/c')
  t.equal(await store.head('a/c'), undefined)
})

t.test('a list that is longer than one answer of the store is complete', { skip: skip || leftToCi() }, async t => {
  const store = openWith(t, await withObjectStore(t))
  const keys = Array.from({ length: 1005 }, (_, n) => `a/${String(n).padStart(4, '0')}`)
  const waiting = [...keys]
  await Promise.all(
    Array.from({ length: 16 }, async () => {
      for (let key = waiting.shift(); key !== undefined; key = waiting.shift()) await store.putBytes(key, Buffer.from(key))
    }),
  )
  const found = []
  for await (const { key } of store.list('a/')) found.push(key)
  t.same(found, keys)
})

t.test('a missing object is an ObjectMissing that names it', { skip }, async t => {
  const bucket = await withObjectStore(t)
  const store = openWith(t, bucket)
  const missing = await store.getBytes('a/b').catch((error: unknown) => error)
  t.type(missing, ObjectMissing)
  t.match(missing, { message: `${bucket.url}/a/b: there is no such object` })
  const copy = join(await makeDirectory(t), 'copy')
  await t.rejects(store.getToFile('a/b', copy), { message: /a\/b: there is no such object/ })
  t.notOk(existsSync(copy))
  for await (const found of store.list('')) t.fail(found.key)
})

t.test('a body that was changed on the way is refused and not stored', { skip }, async t => {
  const bucket = await withObjectStore(t)
  const { file, sha256 } = await makeFile(t, 2 * MEBIBYTE)
  const always = await withProxy(t, bucket.endpoint, (_, { method }) => (method === 'PUT' ? 'flip' : 'pass'))
  const store = openWith(t, { ...bucket, endpoint: always.endpoint })
  t.match(await complaint(store.put('a/x', file, sha256)), /an\/archive\/a\/x: could not be stored: .*changed on the way/)
  t.match(await complaint(store.putBytes('a/y', Buffer.from('hello'))), /changed on the way/)
  for await (const found of store.list('')) t.fail(found.key)

  const once = await withProxy(t, bucket.endpoint, (_, { method }) => {
    return method === 'PUT' && !once.seen.some(({ fate }) => fate === 'flip') ? 'flip' : 'pass'
  })
  const other = openWith(t, { ...bucket, endpoint: once.endpoint })
  await other.put('a/x', file, sha256)
  t.equal((await other.getToFile('a/x', `${file}.copy`)).sha256, sha256, 'it arrives when it is sent again')
  t.same(
    once.seen.filter(({ method }) => method === 'PUT').map(({ fate }) => fate),
    ['flip', 'pass'],
  )
})

t.test('a file that does not match its SHA-256 is refused', { skip }, async t => {
  const store = openWith(t, await withObjectStore(t))
  for (const bytes of [MEBIBYTE, 65 * MEBIBYTE]) {
    const { file } = await makeFile(t, bytes)
    t.match(await complaint(store.put('a/x', file, '0'.repeat(64))), /sha256|not what was sent/i)
    t.equal(await store.head('a/x'), undefined)
  }
})

t.test('old stores are not sent headers that they do not know', { skip }, async t => {
  const bucket = await withObjectStore(t)
  const proxy = await withProxy(t, bucket.endpoint)
  const store = openWith(t, { ...bucket, endpoint: proxy.endpoint })
  const { file, sha256 } = await makeFile(t, 65 * MEBIBYTE)
  await store.putBytes('a/small', Buffer.from('hello'))
  await store.put('a/large', file, sha256)
  await store.getBytes('a/small')
  const bodies = proxy.seen.filter(({ method }) => method === 'PUT')
  t.equal(bodies.length, 3, 'one object and two parts')
  for (const { headers, bytes } of bodies) {
    t.equal(Number(headers['content-length']), bytes, 'the length is as announced')
    t.match(headers['x-amz-content-sha256'], /^[0-9a-f]{64}$/, 'signed as a whole')
  }
  t.equal(bodies[0]?.headers['x-amz-content-sha256'], createHash('sha256').update('hello').digest('hex'))
  for (const { method, url, headers } of proxy.seen) {
    const names = Object.keys(headers).join(' ')
    // Google answers ExcessHeaderValues to a checksum header that it does not know.
    t.notMatch(names, /checksum|x-amz-trailer|x-amz-decoded-content-length|transfer-encoding|crc32|crc64/, `${method} ${url}`)
    t.notMatch(String(headers['content-encoding']), /aws-chunked/)
    t.notMatch(String(headers['x-amz-content-sha256']), /STREAMING|UNSIGNED/)
  }
})

t.test('AWS is sent the SHA-256 of each object and part, to keep and compare', { skip }, async t => {
  const bucket = await withObjectStore(t)
  const proxy = await withProxy(t, bucket.endpoint)
  const store = openWith(t, { ...bucket, endpoint: proxy.endpoint, rules: { checksum: 'sha256' } })
  const { file, sha256 } = await makeFile(t, 65 * MEBIBYTE)
  await store.putBytes('a/small', Buffer.from('hello'))
  await store.put('a/large', file, sha256)
  t.equal((await store.getToFile('a/large', `${file}.copy`)).sha256, sha256)
  const bodies = proxy.seen.filter(({ method }) => method === 'PUT')
  t.equal(bodies.length, 3, 'one object and two parts')
  for (const { headers } of bodies) {
    t.equal(headers['x-amz-checksum-sha256'], Buffer.from(String(headers['x-amz-content-sha256']), 'hex').toString('base64'))
    t.equal(headers['x-amz-sdk-checksum-algorithm'], 'SHA256')
  }
})

t.test('a file above 64 MiB is uploaded in parts, and comes back whole', { skip }, async t => {
  const bucket = await withObjectStore(t)
  const proxy = await withProxy(t, bucket.endpoint)
  const store = openWith(t, { ...bucket, endpoint: proxy.endpoint })
  const { file, bytes, sha256 } = await makeFile(t, 150 * MEBIBYTE + 12_345)
  await store.put('a/large', file, sha256)
  const parts = proxy.seen.filter(({ method }) => method === 'PUT').map(seen => seen.bytes)
  t.same(parts, [64 * MEBIBYTE, 64 * MEBIBYTE, 22 * MEBIBYTE + 12_345])
  t.same(await store.head('a/large'), { key: 'a/large', bytes })
  t.same(await store.getToFile('a/large', `${file}.copy`), { bytes, sha256 })
  t.same(await unfinished(bucket), [])
})

t.test('a part that fails is sent again; if it keeps failing, no part stays', { skip }, async t => {
  const bucket = await withObjectStore(t)
  const { file, bytes, sha256 } = await makeFile(t, 65 * MEBIBYTE)
  const isSecond = (url = '') => url.includes('partNumber=2')
  const never = await withProxy(t, bucket.endpoint, (_, { url }) => (isSecond(url) ? 'refuse' : 'pass'))
  const store = openWith(t, { ...bucket, endpoint: never.endpoint })
  t.match(await complaint(store.put('a/large', file, sha256)), /a\/large: could not be stored, at part 2/)
  t.equal(await store.head('a/large'), undefined)
  t.same(await unfinished(bucket), [])

  let failed = 0
  const fates = ['refuse', 'cut', 'flip'] as const
  const thrice = await withProxy(t, bucket.endpoint, (_, { url }) => (isSecond(url) ? (fates[failed++] ?? 'pass') : 'pass'))
  const other = openWith(t, { ...bucket, endpoint: thrice.endpoint })
  await other.put('a/large', file, sha256)
  t.same(await other.getToFile('a/large', `${file}.copy`), { bytes, sha256 })
})

t.test('the first and the last answer of an upload in parts may be lost', { skip }, async t => {
  const bucket = await withObjectStore(t)
  const { file, bytes, sha256 } = await makeFile(t, 65 * MEBIBYTE)
  const lost = new Set<string>()
  const proxy = await withProxy(t, bucket.endpoint, (_, { method, url = '' }) => {
    const isFirst = method === 'POST' && !lost.has(url)
    lost.add(url)
    return isFirst ? 'lose' : 'pass'
  })
  const store = openWith(t, { ...bucket, endpoint: proxy.endpoint })
  await store.put('a/large', file, sha256)
  t.same(await store.getToFile('a/large', `${file}.copy`), { bytes, sha256 })
  t.equal(proxy.seen.filter(({ fate }) => fate === 'lose').length, 2)
  t.same(await unfinished(bucket), [])
})

t.test(
  'the parts that a killed archiver left are removed before the next upload, and those of other keys stay',
  { skip },
  async t => {
    const bucket = await withObjectStore(t)
    const { file, sha256 } = await makeFile(t, 65 * MEBIBYTE)
    const prefix = new URL(bucket.url).pathname.slice(1)
    for (const key of ['a/large', 'a/large.other']) {
      const Key = `${prefix}/${key}`
      const { UploadId } = await bucket.client.send(new CreateMultipartUploadCommand({ Bucket: bucket.bucket, Key }))
      await bucket.client.send(
        new UploadPartCommand({ Bucket: bucket.bucket, Key, UploadId, PartNumber: 1, Body: Buffer.from('half') }),
      )
    }
    await openWith(t, bucket).put('a/large', file, sha256)
    t.same(
      (await unfinished(bucket)).map(({ Key }) => Key),
      [`${prefix}/a/large.other`],
    )
  },
)

t.test('an upload that is stopped leaves nothing', { skip }, async t => {
  const bucket = await withObjectStore(t)
  const { file, sha256 } = await makeFile(t, 130 * MEBIBYTE)
  const stop = new AbortController()
  const proxy = await withProxy(t, bucket.endpoint, (_, { url = '' }) => {
    if (url.includes('partNumber=2')) stop.abort(new Error('told to stop'))
    return 'pass'
  })
  const store = openWith(t, { ...bucket, endpoint: proxy.endpoint })
  t.match(await complaint(store.put('a/large', file, sha256, stop.signal)), /told to stop/)
  t.equal(await store.head('a/large'), undefined)
  t.same(await unfinished(bucket), [])
})

t.test('parts grow if 10,000 parts of 64 MiB are not enough', async t => {
  t.equal(partBytes(65 * MEBIBYTE), 64 * MEBIBYTE)
  t.equal(partBytes(10_000 * 64 * MEBIBYTE), 64 * MEBIBYTE)
  for (const bytes of [10_000 * 64 * MEBIBYTE + 1, 5 * 2 ** 40]) t.ok(Math.ceil(bytes / partBytes(bytes)) <= 10_000)
})

t.test('a download that breaks off is started again', { skip }, async t => {
  const bucket = await withObjectStore(t)
  const { file, bytes, sha256 } = await makeFile(t, 3 * MEBIBYTE)
  await openWith(t, bucket).put('a/x', file, sha256)
  let broken = 0
  const proxy = await withProxy(t, bucket.endpoint, (_, { method }) => (method === 'GET' && broken++ < 2 ? 'break' : 'pass'))
  const store = openWith(t, { ...bucket, endpoint: proxy.endpoint })
  t.same(await store.getToFile('a/x', `${file}.copy`), { bytes, sha256 })
  const always = await withProxy(t, bucket.endpoint, () => 'break')
  const other = openWith(t, { ...bucket, endpoint: always.endpoint })
  t.match(await complaint(other.getToFile('a/x', `${file}.other`)), /a\/x: could not be read/)
  t.notOk(existsSync(`${file}.other`), 'no partial copy stays')
  await writeFile(`${file}.kept`, 'mine')
  t.match(await complaint(store.getToFile('a/x', `${file}.kept`)), /EEXIST/)
  t.ok(existsSync(`${file}.kept`))
})

t.test('a store that fails half of its requests can be used', { skip }, async t => {
  const bucket = await withObjectStore(t)
  const fates = ['refuse', 'cut', 'lose', 'break'] as const
  const proxy = await withProxy(t, bucket.endpoint, number => (number % 2 === 0 ? fates[(number / 2) % 4]! : 'pass'))
  const store = openWith(t, { ...bucket, endpoint: proxy.endpoint })
  const { file, bytes, sha256 } = await makeFile(t, 65 * MEBIBYTE)
  await store.check()
  await store.put('a/large', file, sha256)
  t.same(await store.getToFile('a/large', `${file}.copy`), { bytes, sha256 })
  for (let n = 0; n < 20; n++) await store.putBytes(`a/${n}`, Buffer.from(String(n)))
  for (let n = 0; n < 20; n++) t.equal(String(await store.getBytes(`a/${n}`)), String(n))
  const keys = []
  for await (const { key } of store.list('a/')) keys.push(key)
  t.equal(keys.length, 21)
  for (const key of keys) await store.delete(key)
  t.equal(await store.head('a/large'), undefined)
  t.same(await unfinished(bucket), [])
})

t.test('faults in the settings are explained', { skip }, async t => {
  const bucket = await withObjectStore(t)
  const { file, sha256 } = await makeFile(t, 1000)
  const failing = async (settings: Partial<TestBucket>) => {
    const store = openWith(t, { ...bucket, ...settings })
    const said = await complaint(store.check())
    const why = /cannot be used: (.{20})/.exec(said)?.[1] ?? 'a sentence'
    const calls = [
      () => store.put('a/x', file, sha256),
      () => store.putBytes('a/x', Buffer.from('x')),
      () => store.getBytes('a/x'),
    ]
    for (const call of calls) t.match(await complaint(call()), why)
    return said
  }
  t.match(
    await failing({ url: `${bucket.url.replace(bucket.bucket, `${bucket.bucket}-none`)}` }),
    /there is no bucket [\w-]+-none .*; create it, or correct ARCHIVE_URL/,
  )
  t.match(
    await failing({ env: { ...bucket.env, AWS_SECRET_ACCESS_KEY: 'wrong' } }),
    /refuses the secret key; correct AWS_SECRET_ACCESS_KEY/,
  )
  t.match(
    await failing({ env: { ...bucket.env, AWS_ACCESS_KEY_ID: 'NOBODY' } }),
    /does not know the access key; correct AWS_ACCESS_KEY_ID/,
  )
  t.match(await failing({ env: { AWS_REGION: 'us-east-1' } }), /no credentials were found; set AWS_ACCESS_KEY_ID/)
  t.match(await failing({ env: { ...bucket.env, AWS_REGION: undefined } }), /no region is set; set AWS_REGION/)
  const nowhere = openWith(t, { ...bucket, endpoint: 'http://127.0.0.1:1' })
  t.match(await complaint(nowhere.check()), /nothing answers at http:\/\/127.0.0.1:1; correct AWS_ENDPOINT_URL_S3/)
})

t.test('credentials that may only read get a clear error when they store', { skip: withoutOwnStore }, async t => {
  const bucket = await withObjectStore(t)
  await openWith(t, bucket).putBytes('a/x', Buffer.from('hello'))
  const reader = await withUser('reader')
  await bucket.client.send(
    new PutBucketPolicyCommand({
      Bucket: bucket.bucket,
      Policy: JSON.stringify({
        Version: '2012-10-17',
        Statement: [
          {
            Effect: 'Allow',
            Principal: { AWS: ['arn:aws:iam:::user/reader'] },
            Action: ['s3:GetObject', 's3:ListBucket'],
            Resource: [`arn:aws:s3:::${bucket.bucket}`, `arn:aws:s3:::${bucket.bucket}/*`],
          },
        ],
      }),
    }),
  )
  const store = openWith(t, { ...bucket, env: reader })
  await store.check()
  t.equal(String(await store.getBytes('a/x')), 'hello')
  for (const bytes of [1000, 65 * MEBIBYTE]) {
    const { file, sha256 } = await makeFile(t, bytes)
    t.match(
      await complaint(store.put('a/y', file, sha256)),
      /a\/y: could not be stored: these credentials may not do this in bucket fleet-test-/,
    )
  }
  t.match(await complaint(store.delete('a/x')), /a\/x: could not be deleted: these credentials may not do this/)
})

t.test('a full quota is reported as such, and an upload in parts leaves nothing behind', { skip: withoutOwnStore }, async t => {
  const { admin, endpoint } = await ownStore()
  const user = await withUser('small')
  const bucket = await openBucket(t, endpoint, user)
  await admin('quota', 'set', '--quota-scope=user', '--uid=small', `--max-size=${10 * MEBIBYTE}`)
  await admin('quota', 'enable', '--quota-scope=user', '--uid=small')
  const store = openWith(t, bucket)
  await store.putBytes('a/x', Buffer.from('hello'))
  for (const bytes of [20 * MEBIBYTE, 65 * MEBIBYTE]) {
    const { file, sha256 } = await makeFile(t, bytes)
    t.match(
      await complaint(store.put('a/y', file, sha256)),
      /a\/y: could not be stored.*: the quota of bucket fleet-test-.* is used up/,
    )
    t.equal(await store.head('a/y'), undefined)
  }
  t.same(await unfinished(bucket), [])
  t.equal(String(await store.getBytes('a/x')), 'hello', 'existing objects stay readable')
})
