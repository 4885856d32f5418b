// Helpers for the tests against a real S3 store.
import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import {
  AbortMultipartUploadCommand,
  CreateBucketCommand,
  DeleteBucketCommand,
  DeleteObjectCommand,
  ListMultipartUploadsCommand,
  ListObjectsV2Command,
  PutObjectLockConfigurationCommand,
  S3Client,
} from '@aws-sdk/client-s3'
import tap, { type Test } from 'tap'
import { currentEnv, objectStoreConfig } from '../local/config.ts'
import { objectStore, startObjectStore, type ObjectStore } from './object-store.ts'
import { startProxy } from './s3-proxy.ts'
import { createS3Store } from '../archiver/store/s3-store.ts'
import type { BucketRules } from '../archiver/store/store.ts'
import { describeError } from '../lib/errors.ts'

export interface TestBucket {
  endpoint: string
  bucket: string
  /** An ARCHIVE_URL in the bucket, under which there is nothing yet. */
  url: string
  /** The AWS_* settings of a process that may do everything there. */
  env: Record<string, string | undefined>
  /** A client that looks at the store without the code under test. */
  client: S3Client
}

const { endpoint: givenEndpoint, bucket: givenBucket, aws } = objectStoreConfig()

/** Why the tests that need a store are skipped; false if they run. In CI they always run. */
export const withoutStore = givenEndpoint
  ? false
  : objectStore.without && `${objectStore.without}, or set S3_TEST_ENDPOINT and its AWS_*`

/** As withoutStore, for tests that make users and quotas. Only the store that is started here lets them. */
export const withoutOwnStore = givenEndpoint
  ? 'S3_TEST_ENDPOINT is set, and tests make no users and quotas in that store'
  : withoutStore

let started: Promise<ObjectStore> | undefined

/** The store of this test file. It is started at the first call and ends with the file. */
export function ownStore() {
  return (started ??= startObjectStore().then(store => {
    tap.teardown(() => store.end())
    return store
  }))
}

/**
 * Makes a bucket, or a prefix in S3_TEST_BUCKET. In a store that was not started here it is emptied and removed in teardown. The
 * first call in a test file starts the store.
 */
export async function withObjectStore(t: Test): Promise<TestBucket> {
  if (givenEndpoint) return await openBucket(t, givenEndpoint, aws)
  const { endpoint: own, accessKey, secretKey } = await ownStore()
  return await openBucket(t, own, { AWS_ACCESS_KEY_ID: accessKey, AWS_SECRET_ACCESS_KEY: secretKey, AWS_REGION: 'us-east-1' })
}

/** Like withObjectStore, in the store that was started here. The bucket has Object Lock and keeps each version for a day. */
export async function withLockedBucket(t: Test) {
  const { endpoint: own, accessKey, secretKey } = await ownStore()
  const env = { AWS_ACCESS_KEY_ID: accessKey, AWS_SECRET_ACCESS_KEY: secretKey, AWS_REGION: 'us-east-1' }
  return await openBucket(t, own, env, { isLocked: true })
}

/** Makes a user without a bucket in the store that was started here. */
export async function withUser(uid: string) {
  const { admin } = await ownStore()
  const secret = randomBytes(16).toString('hex')
  await admin('user', 'create', `--uid=${uid}`, `--display-name=${uid}`, `--access-key=${uid}-key`, `--secret=${secret}`)
  return { AWS_ACCESS_KEY_ID: `${uid}-key`, AWS_SECRET_ACCESS_KEY: secret, AWS_REGION: 'us-east-1' }
}

/** Tries again after a second if the first attempt fails. */
async function twice(work: () => Promise<unknown>) {
  await work().catch(async (error: unknown) => {
    process.stderr.write(`tried again: ${describeError(error)}\n`)
    await sleep(1000)
    await work()
  })
}

export async function openBucket(
  t: Test,
  endpoint: string,
  env: TestBucket['env'],
  { isLocked = false } = {},
): Promise<TestBucket> {
  const client = new S3Client({
    endpoint,
    forcePathStyle: true,
    region: env.AWS_REGION ?? '',
    requestChecksumCalculation: 'WHEN_REQUIRED',
    credentials: {
      accessKeyId: env.AWS_ACCESS_KEY_ID ?? '',
      secretAccessKey: env.AWS_SECRET_ACCESS_KEY ?? '',
      ...(env.AWS_SESSION_TOKEN ? { sessionToken: env.AWS_SESSION_TOKEN } : {}),
    },
  })
  const name = `fleet-test-${randomBytes(6).toString('hex')}`
  const Bucket = givenBucket ?? name
  const Prefix = givenBucket ? `${name}/` : ''
  if (!givenBucket) await client.send(new CreateBucketCommand({ Bucket, ObjectLockEnabledForBucket: isLocked }))
  if (isLocked) {
    const Rule = { DefaultRetention: { Mode: 'GOVERNANCE' as const, Days: 1 } }
    const ObjectLockConfiguration = { ObjectLockEnabled: 'Enabled' as const, Rule }
    await client.send(new PutObjectLockConfigurationCommand({ Bucket, ObjectLockConfiguration }))
  }
  const empty = async () => {
    for (const { Key, UploadId } of (await client.send(new ListMultipartUploadsCommand({ Bucket, Prefix }))).Uploads ?? []) {
      await client.send(new AbortMultipartUploadCommand({ Bucket, Key, UploadId }))
    }
    for (let more = true; more;) {
      const page = await client.send(new ListObjectsV2Command({ Bucket, Prefix }))
      await Promise.all((page.Contents ?? []).map(({ Key }) => client.send(new DeleteObjectCommand({ Bucket, Key }))))
      more = page.IsTruncated === true
    }
    if (!givenBucket) await client.send(new DeleteBucketCommand({ Bucket }))
  }
  t.teardown(async () => {
    // Our own store ends with the test file, and all that is in it.
    // The last request of an archiver that was killed may still write while the bucket is emptied.
    if (givenEndpoint) await twice(empty)
    client.destroy()
  })
  return { endpoint, bucket: Bucket, url: `s3://${Bucket}/${Prefix}an/archive`, env, client }
}

/**
 * Opens the archiver's store as a process with these settings does; `rules` are its bucketRules.
 * The environment is restored in teardown.
 */
export function openWith(
  t: Test,
  { endpoint, url, env, rules }: Pick<TestBucket, 'endpoint' | 'url' | 'env'> & { rules?: BucketRules },
) {
  const present = currentEnv()
  const before = Object.entries(present).filter(([name]) => name.startsWith('AWS_'))
  const set = (entries: [string, string | undefined][]) => {
    for (const name of Object.keys(present).filter(name => name.startsWith('AWS_'))) delete present[name]
    for (const [name, value] of entries) if (value !== undefined) present[name] = value
  }
  // Prevents the SDK from reading credentials from ~/.aws or from the machine's metadata service.
  set(
    Object.entries({
      AWS_CONFIG_FILE: '/dev/null',
      AWS_SHARED_CREDENTIALS_FILE: '/dev/null',
      AWS_EC2_METADATA_DISABLED: 'true',
      ...env,
    }),
  )
  t.teardown(() => set(before))
  return createS3Store(url, { endpoint, ...rules })
}

/** As startProxy; the proxy ends with the test. */
export async function withProxy(t: Test, ...args: Parameters<typeof startProxy>) {
  const { end, ...proxy } = await startProxy(...args)
  t.teardown(end)
  return proxy
}
