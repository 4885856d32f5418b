import { execFile } from 'node:child_process'
import { createServer as createPlain } from 'node:http'
import { createServer, type Server } from 'node:https'
import { readFile } from 'node:fs/promises'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { promisify } from 'node:util'
import t, { type Test } from 'tap'
import { withAuthority } from '../testing/certificates.ts'
import { shellTools } from '../testing/shell-tools.ts'
import { plainEnv, serverAddress } from './config.ts'
import { repository } from '../lib/repository.ts'
import { ask, urlFor } from './own-server.ts'

const run = promisify(execFile)
const skip = shellTools.without

/** Serves with this certificate; returns the URL and what was received. */
async function withHttps(t: Test, { cert, key }: { cert: string; key: string }) {
  const received: unknown[] = []
  const server = createServer({ cert: await readFile(cert), key: await readFile(key) }, (incoming, outgoing) => {
    received.push(incoming.headers['x-admin'])
    outgoing.writeHead(incoming.url === '/healthz' ? 200 : 404).end(incoming.url)
  })
  return { url: await listening(t, server), received }
}

async function listening(t: Test, server: Server | ReturnType<typeof createPlain>) {
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  t.teardown(() => server.close())
  return `127.0.0.1:${(server.address() as AddressInfo).port}`
}

t.test('over TLS the server of this machine is known by its certificate, not by its name', { skip }, async t => {
  const { issue } = await withAuthority(t)
  const own = await issue('own', { names: 'DNS:fleet.example.com' })
  const other = await issue('other', { names: 'DNS:fleet.example.com, IP:127.0.0.1' })
  const { url, received } = await withHttps(t, own)
  const options = { headers: { 'x-admin': 'the key' }, timeoutMs: 5_000 }
  t.same(await ask(`https://${url}/healthz`, { ...options, certFile: own.cert }), { status: 200, text: '/healthz' })
  t.same(await ask(`https://${url}/none`, { ...options, certFile: own.cert }), { status: 404, text: '/none' })
  t.same(received, ['the key', 'the key'])
  await t.rejects(ask(`https://${url}/healthz`, { ...options, certFile: other.cert }), { message: /has another certificate/ })
  t.equal(received.length, 2, 'nothing was sent to it')
  await t.rejects(ask('https://127.0.0.1:1/', { ...options, certFile: own.cert }), { code: 'ECONNREFUSED' })
})

t.test('without TLS it is asked as ever', async t => {
  const plain = createPlain((_, outgoing) => outgoing.end('yes'))
  const url = `http://${await listening(t, plain)}/`
  t.same(await ask(url, { timeoutMs: 5_000, certFile: undefined }), { status: 200, text: 'yes' })
  t.match(serverAddress({ ADMIN_KEY: 'k', TLS_CERT: '' }), { url: 'http://127.0.0.1:8080', certFile: undefined })
  t.match(serverAddress({ ADMIN_KEY: 'k', TLS_CERT: '/x', HOST: '::', PORT: '8443' }), {
    url: 'https://127.0.0.1:8443',
    certFile: '/x',
  })
})

t.test('the URL that is printed has a name of the certificate', { skip }, async t => {
  const { issue } = await withAuthority(t)
  const local = await issue('local')
  const named = await issue('named', { names: 'DNS:*.example.com, DNS:fleet.example.com' })
  const wild = await issue('wild', { names: 'DNS:*.example.com' })
  t.equal(await urlFor('127.0.0.1', 8080, undefined), 'http://127.0.0.1:8080')
  t.equal(await urlFor('127.0.0.1', 8443, local.cert), 'https://127.0.0.1:8443')
  t.equal(await urlFor('[::1]', 8443, named.cert), 'https://fleet.example.com:8443')
  t.equal(await urlFor('127.0.0.1', 8443, wild.cert), 'https://127.0.0.1:8443')
})

t.test('the healthcheck of the image speaks what the server speaks', { skip }, async t => {
  const { issue } = await withAuthority(t)
  const files = await issue('own', { names: 'DNS:fleet.example.com' })
  const { url } = await withHttps(t, files)
  const plain = createPlain((incoming, outgoing) => outgoing.writeHead(incoming.url === '/healthz' ? 200 : 404).end())
  const plainUrl = await listening(t, plain)
  const health = (target: string, env: Record<string, string> = {}) =>
    run(process.execPath, [join(repository, 'docker/node/health.js'), target], { env: { ...plainEnv(), ...env } }).then(
      () => 0,
      (error: { code: number }) => error.code,
    )
  const secure = { TLS_CERT: files.cert }
  t.equal(await health(`http://${url}/healthz`, secure), 0)
  t.equal(await health(`http://${url}/none`, secure), 1)
  t.equal(await health(`http://${plainUrl}/healthz`, secure), 1)
  t.equal(await health('http://127.0.0.1:1/healthz', secure), 1)
  t.equal(await health(`http://${plainUrl}/healthz`), 0)
  t.equal(await health(`http://${plainUrl}/none`), 1)
  t.equal(await health(`http://${url}/healthz`), 1)
})
