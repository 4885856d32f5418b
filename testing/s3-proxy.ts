// What goes wrong between an archiver and a real S3 store, for tests and drills: a proxy that gives each request its fate.
import { createServer, request as httpRequest, type IncomingMessage } from 'node:http'
import { request as httpsRequest } from 'node:https'
import type { AddressInfo } from 'node:net'
import { Transform } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'

/**
 * What happens to a request on its way: it passes; passes late (`slow`); is answered 503 (`refuse`); its connection is cut before the
 * store hears of it (`cut`), after it did its part (`lose`), or in the middle of the answer (`break`); a byte of its body is flipped
 * (`flip`). Or the store lies: it says that it stored what it did not (`swallow`, else as pass), or answers with a byte flipped (`garble`).
 */
export type Fate = 'pass' | 'slow' | 'refuse' | 'cut' | 'lose' | 'break' | 'flip' | 'swallow' | 'garble'

export interface SeenRequest {
  method: string
  url: string
  headers: IncomingMessage['headers']
  bytes: number
  fate: Fate
}

const SLOW_MS = 700

/** A proxy before the store; `fate` is asked with each request's number, from 0. */
export async function startProxy(endpoint: string, fate: (number: number, request: IncomingMessage) => Fate = () => 'pass') {
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

/** Passes bytes on; flips one of the first chunk. */
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
