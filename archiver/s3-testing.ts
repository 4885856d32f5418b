// What the tests against a real S3 store share.
import { randomBytes } from 'node:crypto'
import { createServer, request as httpRequest, type IncomingMessage } from 'node:http'
import { request as httpsRequest } from 'node:https'
import type { AddressInfo } from 'node:net'
import { Transform } from 'node:stream'
import {
  AbortMultipartUploadCommand, CreateBucketCommand, DeleteBucketCommand, DeleteObjectCommand, ListMultipartUploadsCommand,
  ListObjectsV2Command, S3Client,
} from '@aws-sdk/client-s3'
import tap, { type Test } from 'tap'
import { currentEnv, objectStoreConfig } from '../local/config.ts'
import { hasObjectStore, objectStorePackages, startObjectStore, type ObjectStore } from '../local/object-store.ts'
import { createS3Store } from './s3-store.ts'
import { openStore } from './store.ts'

export interface TestBucket {
  endpoint: string
  bucket: string
  /** An ARCHIVE_URL in the bucket, with nothing under it yet. */
  url: string
  /** AWS_*: the settings of a process that may do everything there. */
  env: Record<string, string | undefined>
  /** To look at the store past the code under test. */
  client: S3Client
}

const { endpoint, bucket: givenBucket, aws, isCI } = objectStoreConfig()

/** Why the tests that need a store are skipped; false when they are not. In CI they never are. */
export const withoutStore = endpoint || hasObjectStore() || isCI ? false
  : `no S3 store to test with: install ${objectStorePackages.join(' ')}, or set S3_TEST_ENDPOINT and its AWS_*`

/** As withoutStore, for tests that make users and quotas, which only the store that is started here lets them. */
export const withoutOwnStore = endpoint ? 'S3_TEST_ENDPOINT: users and quotas of that store are not ours to make' : withoutStore

let started: Promise<ObjectStore> | undefined

/** The store that this test file started; it ends with the file. */
export function ownStore() {
  return started ??= startObjectStore().then(store => {
    tap.teardown(() => store.end())
    return store
  })
}

/** A new bucket (in S3_TEST_BUCKET: a new prefix), emptied and removed in teardown. The store starts with the first one of a test file. */
export async function withObjectStore(t: Test): Promise<TestBucket> {
  if (endpoint) return await openBucket(t, endpoint, aws)
  const { endpoint: own, accessKey, secretKey } = await ownStore()
  return await openBucket(t, own, { AWS_ACCESS_KEY_ID: accessKey, AWS_SECRET_ACCESS_KEY: secretKey, AWS_REGION: 'us-east-1' })
}

/** A user of their own in the store that was started here, without a bucket. */
export async function withUser(t: Test, uid: string) {
  const { admin } = await ownStore()
  const secret = randomBytes(16).toString('hex')
  await admin('user', 'create', `--uid=${uid}`, `--display-name=${uid}`, `--access-key=${uid}-key`, `--secret=${secret}`)
  t.teardown(() => admin('user', 'rm', `--uid=${uid}`, '--purge-data'))
  return { AWS_ACCESS_KEY_ID: `${uid}-key`, AWS_SECRET_ACCESS_KEY: secret, AWS_REGION: 'us-east-1' }
}

export async function openBucket(t: Test, endpoint: string, env: TestBucket['env']): Promise<TestBucket> {
  const client = new S3Client({
    endpoint, forcePathStyle: true, region: env.AWS_REGION ?? '', requestChecksumCalculation: 'WHEN_REQUIRED',
    credentials: {
      accessKeyId: env.AWS_ACCESS_KEY_ID ?? '', secretAccessKey: env.AWS_SECRET_ACCESS_KEY ?? '',
      ...(env.AWS_SESSION_TOKEN ? { sessionToken: env.AWS_SESSION_TOKEN } : {}),
    },
  })
  const name = `fleet-test-${randomBytes(6).toString('hex')}`
  const Bucket = givenBucket ?? name
  const Prefix = givenBucket ? `${name}/` : ''
  if (!givenBucket) await client.send(new CreateBucketCommand({ Bucket }))
  t.teardown(async () => {
    for (const { Key, UploadId } of (await client.send(new ListMultipartUploadsCommand({ Bucket, Prefix }))).Uploads ?? []) {
      await client.send(new AbortMultipartUploadCommand({ Bucket, Key, UploadId }))
    }
    for (let more = true; more;) {
      const page = await client.send(new ListObjectsV2Command({ Bucket, Prefix }))
      await Promise.all((page.Contents ?? []).map(({ Key }) => client.send(new DeleteObjectCommand({ Bucket, Key }))))
      more = page.IsTruncated === true
    }
    if (!givenBucket) await client.send(new DeleteBucketCommand({ Bucket }))
    client.destroy()
  })
  return { endpoint, bucket: Bucket, url: `s3://${Bucket}/${Prefix}an/archive`, env, client }
}

/**
 * The store of the archiver, as a process with these settings has it, or one that sends checksums as to AWS; the environment is put
 * back in teardown.
 */
export function openWith(t: Test, { endpoint, url, env, checksums }: Pick<TestBucket, 'endpoint' | 'url' | 'env'> & { checksums?: boolean }) {
  const present = currentEnv()
  const before = Object.entries(present).filter(([name]) => name.startsWith('AWS_'))
  const set = (entries: [string, string | undefined][]) => {
    for (const name of Object.keys(present).filter(name => name.startsWith('AWS_'))) delete present[name]
    for (const [name, value] of entries) if (value !== undefined) present[name] = value
  }
  // Nor from ~/.aws, nor from the machine's own address for them.
  set(Object.entries({ AWS_CONFIG_FILE: '/dev/null', AWS_SHARED_CREDENTIALS_FILE: '/dev/null', AWS_EC2_METADATA_DISABLED: 'true', ...env }))
  t.teardown(() => set(before))
  return checksums === undefined ? openStore(url, { s3Endpoint: endpoint }) : createS3Store(url, { endpoint, checksums })
}

/**
 * What happens to a request on its way: it passes; is answered 503; its connection is cut before the store hears of
 * it (`cut`), after it did its part (`lose`), or in the middle of the answer (`break`); a byte of its body is flipped.
 */
export type Fate = 'pass' | 'refuse' | 'cut' | 'lose' | 'break' | 'flip'

export interface SeenRequest { method: string, url: string, headers: IncomingMessage['headers'], bytes: number, fate: Fate }

/** A proxy before the store, for as long as the test; `fate` is asked with each request's number, from 0. */
export async function withProxy(t: Test, endpoint: string, fate: (number: number, request: IncomingMessage) => Fate = () => 'pass') {
  const seen: SeenRequest[] = []
  const send = endpoint.startsWith('https:') ? httpsRequest : httpRequest
  const server = createServer((request, response) => {
    const { method = '', url = '', headers } = request
    const one: SeenRequest = { method, url, headers, bytes: 0, fate: fate(seen.length, request) }
    seen.push(one)
    if (one.fate === 'cut') return void request.socket.destroy()
    if (one.fate === 'refuse') {
      response.writeHead(503, { connection: 'close' })
      response.end('<Error><Code>ServiceUnavailable</Code><Message>no</Message></Error>')
      return
    }
    const count = new Transform({
      transform(chunk: Buffer, _encoding, done) {
        const flipped = one.fate === 'flip' && one.bytes === 0 && chunk.length > 0
        if (flipped) chunk[chunk.length >> 1]! ^= 1
        one.bytes += chunk.length
        done(null, chunk)
      },
    })
    delete headers.expect // answered here
    const upstream = send(endpoint, { method, path: url, headers, agent: false }, answer => {
      if (one.fate === 'lose') {
        answer.resume()
        return void request.socket.destroy()
      }
      response.writeHead(answer.statusCode ?? 500, answer.headers)
      if (one.fate === 'break') {
        answer.once('data', (chunk: Buffer) => {
          response.write(chunk.subarray(0, chunk.length >> 1), () => request.socket.destroy())
          answer.destroy()
        })
        answer.once('end', () => request.socket.destroy())
      } else {
        answer.pipe(response)
      }
    })
    upstream.on('error', () => request.socket.destroy())
    request.on('error', () => upstream.destroy())
    request.pipe(count).pipe(upstream)
  })
  await new Promise<void>(resolve => { server.listen(0, '127.0.0.1', resolve) })
  t.teardown(() => new Promise<void>(resolve => {
    server.close(() => resolve())
    server.closeAllConnections()
  }))
  return { endpoint: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, seen }
}
