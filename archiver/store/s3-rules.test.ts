// Buckets with rules. The encryption is demanded by Ceph's gateway itself, by the policy of the bucket. Object Lock and retention
// are the gateway's too; that it demands a checksum is done by the proxy, as in AWS.
import { createHash, randomBytes } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import {
  HeadObjectCommand,
  ListMultipartUploadsCommand,
  ListObjectsV2Command,
  ListObjectVersionsCommand,
  PutBucketPolicyCommand,
  PutObjectCommand,
} from '@aws-sdk/client-s3'
import t, { type Test } from 'tap'
import { leftToDeep } from '../../local/config.ts'
import { describeError } from '../../lib/errors.ts'
import { KMS_KEY } from '../../testing/object-store.ts'
import { spawnNode, withDatabase, type TestDatabase } from '../../testing/database.ts'
import { demandChecksum, demandEncryption } from '../../testing/s3-proxy.ts'
import {
  openWith,
  withLockedBucket,
  withObjectStore,
  withoutOwnStore as skip,
  withProxy,
  type TestBucket,
} from '../../testing/s3.ts'
import {
  archiverEnv,
  eventsOf,
  fillDay,
  makeDirectory,
  partitionOf,
  retiredDay,
  runOnce,
  stateOf,
} from '../../testing/archiver.ts'
import { contentOf } from '../../testing/rows.ts'

// The store is started by the first test that needs it.
t.setTimeout(600_000)

const MEBIBYTE = 2 ** 20
const KMS = { ARCHIVE_SSE: 'aws:kms', ARCHIVE_SSE_KMS_KEY_ID: KMS_KEY }

type Env = Record<string, string | undefined>

/** A bucket whose policy denies what is not encrypted with SSE-KMS. */
async function withKmsBucket(t: Test) {
  const bucket = await withObjectStore(t)
  const Bucket = bucket.bucket
  const deny = (Sid: string, Condition: object) => {
    return { Sid, Effect: 'Deny', Principal: '*', Action: 's3:PutObject', Resource: `arn:aws:s3:::${Bucket}/*`, Condition }
  }
  // The gateway before Ceph 18 takes StringNotEquals for false if the header is missing. AWS takes it for true.
  const Statement = [
    deny('none', { Null: { 's3:x-amz-server-side-encryption': 'true' } }),
    deny('other', { StringNotEquals: { 's3:x-amz-server-side-encryption': 'aws:kms' } }),
  ]
  await bucket.client.send(new PutBucketPolicyCommand({ Bucket, Policy: JSON.stringify({ Version: '2012-10-17', Statement }) }))
  return bucket
}

/** The settings of an archiver process that stores in a bucket. */
function bucketEnv({ url, endpoint, env }: TestBucket, rules: Env = {}) {
  return { ARCHIVE_URL: url, AWS_ENDPOINT_URL_S3: endpoint, ...env, ...rules }
}

async function run(t: Test, db: TestDatabase, directory: string, env: Env, ...args: string[]) {
  const cli = await spawnNode(t, 'archiver/cli.ts', { args, env: archiverEnv(db, directory, env) })
  const { code } = await cli.exited
  return { code, output: cli.output() }
}

async function objectsIn({ client, bucket }: TestBucket) {
  const { Contents = [] } = await client.send(new ListObjectsV2Command({ Bucket: bucket }))
  return Contents.map(({ Key = '' }) => Key)
}

/** A database with a retired day, which has a column that is dropped later. */
async function withDay(t: Test) {
  const db = await withDatabase(t)
  await db.sql`alter table fleet.device_heartbeats add column model text not null default 'unknown'`
  await fillDay(db.admin, retiredDay, 1000)
  const partition = await partitionOf(db.sql, retiredDay)
  await db.sql`select fleet.archive_partition(${partition})`
  return { db, partition, directory: await makeDirectory(t) }
}

/** The life of a day: archived, proven, dropped, verified, queried, restored, and archived again with a row more and a column less. */
async function liveThrough(t: Test, { db, partition, directory }: Awaited<ReturnType<typeof withDay>>, env: Env) {
  const before = await contentOf(db.admin, `fleet_detached.${partition}`)
  const archive = async () => {
    const { code, output, events } = await runOnce(t, db, directory, env)
    t.equal(code, 0, output)
    t.same(
      events.filter(({ level }) => level === 'warn' || level === 'error'),
      [],
    )
  }
  const verify = async () => {
    for (const args of [['verify'], ['verify', '--all']]) t.match(await run(t, db, directory, env, ...args), { code: 0 })
  }
  await archive()
  t.match(await stateOf(db.sql, partition), { state: 'dropped', ...before, last_error: null })
  await verify()
  t.match(await run(t, db, directory, env, 'query', 'select count(*) as rows from archive', '--csv'), { output: /^1000$/m })

  await db.sql`select fleet.request_restore(${retiredDay}::date)`
  await archive()
  t.same(await contentOf(db.admin, `fleet.${partition}`), before)

  await db.sql`alter table fleet.device_heartbeats drop column model`
  await db.sql`select fleet.unsettle_partition(${partition})`
  await db.admin`
    insert into fleet.device_heartbeats (ts, received_at, device_id) values ((${retiredDay} || ' 12:00Z')::timestamptz, now(), 900)`
  await db.sql`select fleet.release_partition(${partition})`
  await db.sql`select fleet.archive_partition(${partition})`
  await archive()
  t.match(await stateOf(db.sql, partition), { state: 'dropped', row_count: '1001', archive_url: /_r2\.parquet$/ })
  await verify()
  t.match(await run(t, db, directory, env, 'reindex'), { code: 0 })
  const day = retiredDay.replaceAll('-', '')
  return [
    `device_heartbeats/date=${retiredDay}/device_heartbeats_${day}_r2.parquet`,
    'index.json',
    `manifests/date=${retiredDay}/manifest.json`,
    `superseded/date=${retiredDay}/device_heartbeats_${day}.manifest.json`,
    `superseded/date=${retiredDay}/device_heartbeats_${day}.parquet`,
  ].map(key => `an/archive/${key}`)
}

/** Archives a day with settings that the bucket refuses: the day is kept, nothing is stored, and last_error has the hint. */
async function isRefused(t: Test, day: Awaited<ReturnType<typeof withDay>>, bucket: TestBucket, env: Env, hint: RegExp) {
  const { db, partition, directory } = day
  const { code, output } = await runOnce(t, db, directory, env)
  t.equal(code, 1)
  t.match(await stateOf(db.sql, partition), { state: 'archive_failed', last_error: hint })
  const logged = eventsOf(output).find(({ event }) => event === 'partition.archive.failed')
  t.match(JSON.stringify(logged), hint, 'so has the log')
  t.same(await objectsIn(bucket), [])
  t.equal((await contentOf(db.admin, `fleet_detached.${partition}`))?.row_count, '1000')
  await db.sql`select fleet.retry_archive(${partition})`
}

async function complaint(work: Promise<unknown>) {
  return await work.then(() => 'no error', describeError)
}

/** A file that is uploaded in two parts. */
async function largeFile(t: Test) {
  const bytes = randomBytes(65 * MEBIBYTE)
  const file = join(await makeDirectory(t), 'file')
  await writeFile(file, bytes)
  return { file, sha256: createHash('sha256').update(bytes).digest('hex') }
}

t.test('a bucket whose policy demands SSE-KMS needs ARCHIVE_SSE, and then every object has the key', { skip }, async t => {
  const bucket = await withKmsBucket(t)
  const day = await withDay(t)
  const hint =
    /these credentials may not do this in bucket .*, or its policy demands an encryption: set ARCHIVE_SSE and ARCHIVE_SSE_KMS_KEY_ID/
  await isRefused(t, day, bucket, bucketEnv(bucket), hint)
  await isRefused(t, day, bucket, bucketEnv(bucket, { ARCHIVE_SSE: 'AES256' }), hint)
  const badKey = /the store cannot use the KMS key; set ARCHIVE_SSE_KMS_KEY_ID to a key that the store has/
  await isRefused(t, day, bucket, bucketEnv(bucket, { ARCHIVE_SSE: 'aws:kms' }), badKey)
  await isRefused(t, day, bucket, bucketEnv(bucket, { ...KMS, ARCHIVE_SSE_KMS_KEY_ID: 'other' }), badKey)

  const expected = await liveThrough(t, day, bucketEnv(bucket, KMS))
  t.same(await objectsIn(bucket), expected)
  for (const Key of expected) {
    const { ServerSideEncryption, SSEKMSKeyId } = await bucket.client.send(new HeadObjectCommand({ Bucket: bucket.bucket, Key }))
    t.same({ ServerSideEncryption, SSEKMSKeyId }, { ServerSideEncryption: 'aws:kms', SSEKMSKeyId: KMS_KEY }, Key)
  }
})

async function takesAes256({ client, bucket }: TestBucket) {
  try {
    await client.send(new PutObjectCommand({ Bucket: bucket, Key: 'an/archive/probe', Body: '', ServerSideEncryption: 'AES256' }))
    return true
  } catch (error) {
    if (error instanceof Error && error.name === 'InvalidArgument') return false
    throw error
  }
}

t.test('a large file is begun with the encryption, and its parts are sent without', { skip }, async t => {
  const bucket = await withObjectStore(t)
  const { file, sha256 } = await largeFile(t)
  const encryptions: ['aws:kms' | 'AES256', string?][] = [['aws:kms', KMS_KEY]]
  if (await takesAes256(bucket)) encryptions.push(['AES256'])
  else t.comment('without AES256: this version of Ceph wants a Vault server for it')
  for (const [encryption, kmsKey] of encryptions) {
    const proxy = await withProxy(t, bucket.endpoint, demandEncryption(encryption, kmsKey))
    const through = { ...bucket, endpoint: proxy.endpoint }
    const key = `a/${encryption}`
    for (const rules of [{}, { encryption: 'aws:kms:dsse', kmsKey: 'other' } as const])
      t.match(
        await complaint(openWith(t, { ...through, rules }).put(key, file, sha256)),
        /could not be stored: .* its policy demands an encryption: set ARCHIVE_SSE/,
      )
    t.equal(await openWith(t, bucket).head(key), undefined)
    const store = openWith(t, { ...through, rules: { encryption, kmsKey } })
    await store.put(key, file, sha256)
    await store.putBytes(`${key}.json`, Buffer.from('{}'))
    t.equal((await store.getToFile(key, `${file}.${encryption}`)).sha256, sha256)
    t.same((await bucket.client.send(new ListMultipartUploadsCommand({ Bucket: bucket.bucket }))).Uploads ?? [], [])
  }
  const Key = 'an/archive/a/aws:kms'
  t.match(await bucket.client.send(new HeadObjectCommand({ Bucket: bucket.bucket, Key })), {
    ServerSideEncryption: 'aws:kms',
    SSEKMSKeyId: KMS_KEY,
  })
})

for (const [checksum, leftOut] of [
  ['md5', skip],
  ['sha256', skip || leftToDeep()],
] as const) {
  t.test(`a bucket with Object Lock needs ARCHIVE_CHECKSUM, and ${checksum} will do`, { skip: leftOut }, async t => {
    const bucket = await withLockedBucket(t)
    const { endpoint } = await withProxy(t, bucket.endpoint, (n, request) => demandChecksum(n, request))
    const env = { ...bucketEnv(bucket), AWS_ENDPOINT_URL_S3: endpoint }
    const day = await withDay(t)
    const hint =
      /bucket .* demands a checksum of each object, as those with Object Lock do; set ARCHIVE_CHECKSUM to sha256 or md5/
    await isRefused(t, day, bucket, env, hint)
    await isRefused(t, day, bucket, { ...env, ARCHIVE_CHECKSUM: 'none' }, hint)

    const expected = await liveThrough(t, day, { ...env, ARCHIVE_CHECKSUM: checksum })
    t.same(await objectsIn(bucket), expected)

    const { Versions = [], DeleteMarkers = [] } = await bucket.client.send(
      new ListObjectVersionsCommand({ Bucket: bucket.bucket, Prefix: 'an/archive/' }),
    )
    const first = expected[0]?.replace('_r2', '')
    t.same(
      DeleteMarkers.map(({ Key }) => Key),
      [first],
      'the file that was replaced has a delete marker',
    )
    for (const { Key, VersionId } of Versions) {
      t.match(
        await bucket.client.send(new HeadObjectCommand({ Bucket: bucket.bucket, Key, VersionId })),
        { ObjectLockMode: 'GOVERNANCE', ObjectLockRetainUntilDate: Date },
        `${Key} is kept`,
      )
    }
    const versionsOf = (key: string | undefined) => Versions.filter(({ Key }) => Key === key).length
    t.same([versionsOf(first), versionsOf(expected[2])], [1, 2], 'the replaced file and manifest are still there')
    t.ok(versionsOf(expected[1]) >= 2, 'each index is a version')

    const { file, sha256 } = await largeFile(t)
    const store = openWith(t, { ...bucket, endpoint, rules: { checksum } })
    await store.put('a/large', file, sha256)
    t.equal((await store.getToFile('a/large', `${file}.copy`)).sha256, sha256, 'so do the parts of a large file')
    await store.putBytes('a/empty', Buffer.alloc(0))
    await store.delete('a/large')
    t.equal(await store.head('a/large'), undefined)
    const without = openWith(t, { ...bucket, endpoint })
    t.match(await complaint(without.put('a/other', file, sha256)), /a\/other: could not be stored, at part 1: .*ARCHIVE_CHECKSUM/)
    t.equal(await store.head('a/other'), undefined)
    t.same((await bucket.client.send(new ListMultipartUploadsCommand({ Bucket: bucket.bucket }))).Uploads ?? [], [])
  })
}

t.test('a body that was changed on the way is sent again, with the MD5 of the file', { skip }, async t => {
  const bucket = await withObjectStore(t)
  const file = join(await makeDirectory(t), 'file')
  const bytes = randomBytes(MEBIBYTE)
  await writeFile(file, bytes)
  let puts = 0
  const proxy = await withProxy(t, bucket.endpoint, (_, { method }) => (method === 'PUT' && puts++ === 0 ? 'flip' : 'pass'))
  const store = openWith(t, { ...bucket, endpoint: proxy.endpoint, rules: { checksum: 'md5' } })
  await store.put('a/x', file, createHash('sha256').update(bytes).digest('hex'))
  t.ok(bytes.equals(await store.getBytes('a/x')))
  const sent = proxy.seen.filter(({ method }) => method === 'PUT')
  t.equal(sent.length, 2)
  for (const { headers } of sent) t.equal(headers['content-md5'], createHash('md5').update(bytes).digest('base64'))
})

t.test('the errors with which stores refuse these things name the setting', { skip }, async t => {
  const bucket = await withObjectStore(t)
  const refusals = [
    [403, 'AccessDenied', 'User is not authorized to perform: kms:GenerateDataKey on this resource', /ARCHIVE_SSE_KMS_KEY_ID/],
    [400, 'KMS.NotFoundException', "Key 'arn:aws:kms:x' does not exist", /ARCHIVE_SSE_KMS_KEY_ID/],
    [400, 'KMS.DisabledException', 'is disabled', /ARCHIVE_SSE_KMS_KEY_ID/],
    [403, 'AccessDenied', 'with an explicit deny in a resource-based policy', /policy demands an encryption: set ARCHIVE_SSE/],
    [400, 'MissingContentMD5', 'Missing required header for this request: Content-MD5', /set ARCHIVE_CHECKSUM to sha256 or md5/],
    [400, 'InvalidRequest', 'Content-MD5 HTTP header is required for Put Part requests', /set ARCHIVE_CHECKSUM/],
  ] as const
  for (const [status, code, message, hint] of refusals) {
    const proxy = await withProxy(t, bucket.endpoint, () => ({ status, code, message }))
    const store = openWith(t, { ...bucket, endpoint: proxy.endpoint })
    t.match(await complaint(store.putBytes('a/x', Buffer.from('x'))), hint, code)
  }
  const proxy = await withProxy(t, bucket.endpoint, () => ({ status: 403, code: 'AccessDenied', message: 'no' }))
  const store = openWith(t, { ...bucket, endpoint: proxy.endpoint })
  for (const work of [() => store.getBytes('a/x'), () => store.delete('a/x'), () => store.check()])
    t.notMatch(await complaint(work()), /ARCHIVE_SSE/, 'what stores nothing needs no encryption')
})
