// Makes things go wrong between an archiver and a real S3 store, for tests and drills: a proxy that decides the fate of each
// request.
import { createServer, request as httpRequest, type IncomingMessage } from 'node:http'
import { request as httpsRequest } from 'node:https'
import type { AddressInfo } from 'node:net'
import { Transform } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'

/**
 * What happens to a request: `pass`, it passes; `slow`, it passes late; `refuse`, it is answered with 503; `cut`, its connection
 * is cut before the store receives it; `lose`, the connection is cut after the store did its part; `break`, in the middle of the
 * answer; `flip`, a byte of its body is flipped.
 * Two make the store lie: `swallow`, it reports that it stored what it did not store (requests that store nothing pass);
 * `garble`, it answers with a byte flipped.
 */
export type Fate = 'pass' | 'slow' | 'refuse' | 'cut' | 'lose' | 'break' | 'flip' | 'swallow' | 'garble'

/** An answer in the store's place: an error of S3. */
export interface Refusal {
  status: number
  code: string
  message: string
}

export interface SeenRequest {
  method: string
  url: string
  headers: IncomingMessage['headers']
  bytes: number
  fate: Fate | Refusal
}

type Headers = IncomingMessage['headers']

/**
 * The rule of an AWS bucket whose policy denies s3:PutObject without this encryption. It counts when an object or an upload in
 * parts is begun; AWS refuses these headers in the parts. A gateway before Ceph 18 cannot apply such a policy to uploads in parts.
 * https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingKMSEncryption.html
 */
export function demandEncryption(encryption: string, kmsKey?: string) {
  return (_: number, { method, url = '', headers }: IncomingMessage): Fate | Refusal => {
    const isPart = url.includes('partNumber=')
    const begins = (method === 'PUT' && !isPart) || (method === 'POST' && /[?&]uploads\b/.test(url))
    const asked = headers['x-amz-server-side-encryption']
    if (!begins) {
      return asked === undefined
        ? 'pass'
        : {
            status: 400,
            code: 'InvalidArgument',
            message: 'x-amz-server-side-encryption header is not supported for this operation.',
          }
    }
    return asked === encryption && headers['x-amz-server-side-encryption-aws-kms-key-id'] === kmsKey
      ? 'pass'
      : { status: 403, code: 'AccessDenied', message: 'Access Denied' }
  }
}

/**
 * The rule of an AWS bucket with Object Lock and a default retention, which Ceph's gateway does not have: each object and part
 * carries a checksum. Content-MD5 is compared by the gateway, and x-amz-checksum-sha256 here with the signed hash of the body.
 * https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-lock-managing.html
 */
export function demandChecksum(
  _: number,
  { method, headers }: { method?: string | undefined; headers: Headers },
): Fate | Refusal {
  if (method !== 'PUT' || headers['content-md5'] !== undefined) return 'pass'
  const sha256 = headers['x-amz-checksum-sha256']
  if (sha256 === undefined) {
    return {
      status: 400,
      code: 'InvalidRequest',
      message: 'Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters',
    }
  }
  return sha256 === Buffer.from(String(headers['x-amz-content-sha256']), 'hex').toString('base64')
    ? 'pass'
    : { status: 400, code: 'BadDigest', message: 'The SHA256 you specified did not match what we received' }
}

const SLOW_MS = 700

/** Starts a proxy in front of the store. `fate` is called with the number of each request, from 0. */
export async function startProxy(
  endpoint: string,
  fate: (number: number, request: IncomingMessage) => Fate | Refusal = () => 'pass',
) {
  const seen: SeenRequest[] = []
  const send = endpoint.startsWith('https:') ? httpsRequest : httpRequest
  const server = createServer((request, response) => {
    const { method = '', url = '', headers } = request
    const one: SeenRequest = { method, url, headers, bytes: 0, fate: fate(seen.length, request) }
    seen.push(one)
    if (one.fate === 'cut') return void request.socket.destroy()
    const refusal = one.fate === 'refuse' ? { status: 503, code: 'ServiceUnavailable', message: 'no' } : one.fate
    if (typeof refusal === 'object') {
      response.writeHead(refusal.status, { connection: 'close' })
      response.end(`<Error><Code>${refusal.code}</Code><Message>${refusal.message}</Message></Error>`)
      return
    }
    if (one.fate === 'swallow' && method === 'PUT') {
      request
        .resume()
        .once('end', () => response.writeHead(200, { etag: '"d41d8cd98f00b204e9800998ecf8427e"', 'content-length': 0 }).end())
      return
    }
    const count = flipper(one.fate === 'flip')
    count.on('data', (chunk: Buffer) => {
      one.bytes += chunk.length
    })
    delete headers.expect // answered here
    const forward = () => {
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
          answer.pipe(flipper(one.fate === 'garble')).pipe(response)
        }
      })
      upstream.on('error', () => request.socket.destroy())
      request.on('error', () => upstream.destroy())
      request.pipe(count).pipe(upstream)
    }
    if (one.fate === 'slow') void sleep(SLOW_MS).then(forward)
    else forward()
  })
  await new Promise<void>(resolve => {
    server.listen(0, '127.0.0.1', resolve)
  })
  const end = () =>
    new Promise<void>(resolve => {
      server.close(() => resolve())
      server.closeAllConnections()
    })
  return { endpoint: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, seen, end }
}

/** Passes bytes on, and flips one in the first chunk if `flips` is set. */
function flipper(flips: boolean) {
  let isFirst = true
  return new Transform({
    transform(chunk: Buffer, _encoding, done) {
      if (flips && isFirst && chunk.length > 0) chunk[chunk.length >> 1]! ^= 1
      isFirst = false
      done(null, chunk)
    },
  })
}
