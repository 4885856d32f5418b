import { once } from 'node:events'
import { cp, readFile, rename, rm, symlink, truncate, writeFile } from 'node:fs/promises'
import { Agent, createServer } from 'node:https'
import { connect, type AddressInfo } from 'node:net'
import { join } from 'node:path'
import { Writable } from 'node:stream'
import { connect as connectTls } from 'node:tls'
import t, { type Test } from 'tap'
import { needsRealClock } from '../local/config.ts'
import { createLog } from '../lib/log.ts'
import { secureCall, withAuthority } from '../testing/certificates.ts'
import { waitFor, withDatabase } from '../testing/database.ts'
import { answer } from '../testing/hostile-server.ts'
import { ADMIN_KEY, ago, enroll, withProcess, withServer } from '../testing/server.ts'
import { shellTools } from '../testing/shell-tools.ts'
import { Certificate, readPair } from './certificate.ts'
import { readConfig } from './config.ts'

const skip = shellTools.without
const YEAR = 'max-age=31536000'

/** A server that speaks HTTPS, and what is needed to renew its certificate as certbot does: by links to the newest files. */
async function withSecureServer(t: Test, overrides = {}) {
  const authority = await withAuthority(t)
  const place = (name: string) => join(authority.directory, name)
  const files = { cert: place('live-fullchain.pem'), key: place('live-privkey.pem') }
  const renew = async (to: { cert: string; key: string }) => {
    for (const name of ['cert', 'key'] as const) {
      await symlink(to[name], `${files[name]}.new`)
      await rename(`${files[name]}.new`, files[name])
    }
  }
  await renew(await authority.issue('first'))
  const server = await withServer(t, { tls: { files, pair: readPair(files) }, ...overrides })
  const url = server.url.replace('http:', 'https:')
  const call = (what: string, options: Parameters<typeof secureCall>[3] = {}) =>
    secureCall(t, url, what, { ca: authority.ca, ...options })
  return { ...server, ...authority, files, renew, url, call }
}

t.test('the server speaks HTTPS to those who trust its authority, and nothing else', { skip }, async t => {
  const { db, url, call } = await withSecureServer(t)
  const { token } = await enroll(db, 'a')
  const headers = { authorization: `Bearer ${token}` }
  const send = () => call('POST /v1/heartbeat', { headers, body: JSON.stringify({ ts: ago(20) }) })
  t.match(await send(), { status: 201, shown: 'first' })
  await t.rejects(call('GET /readyz', { ca: undefined }), { code: /SELF_SIGNED_CERT_IN_CHAIN|UNABLE_TO_VERIFY/ })

  const { port } = new URL(url)
  const plain = connect(Number(port), '127.0.0.1').on('error', () => {})
  plain.write(`POST /v1/heartbeat HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${token}\r\nContent-Length: 2\r\n\r\n{}`)
  t.notMatch(await answer(plain), /HTTP\/1\.1 2/, 'plain HTTP is cut off')

  for (const [version, isSpoken] of [
    ['TLSv1.1', false],
    ['TLSv1.2', true],
    ['TLSv1.3', true],
  ] as const) {
    // Without this, the client would refuse to speak the old version itself.
    const old = { ciphers: 'DEFAULT@SECLEVEL=0', rejectUnauthorized: false }
    const socket = connectTls({ port: Number(port), minVersion: version, maxVersion: version, ...old })
    t.teardown(() => socket.destroy())
    const result = await once(socket, 'secureConnect').then(
      () => socket.getProtocol(),
      (error: Error) => error.message,
    )
    if (isSpoken) t.equal(result, version)
    else t.match(result, /protocol version/, version)
  }
  t.equal((await send()).status, 200, 'and the server goes on')
})

t.test('every answer over TLS asks browsers for HTTPS, and no other answer does', { skip }, async t => {
  const secure = await withSecureServer(t, { trustProxy: true })
  const plain = await withServer(t, { trustProxy: true }, secure.db)
  const admin = { 'x-admin': ADMIN_KEY }
  for (const [call, status, headers] of [
    ['GET /healthz', 200, {}],
    ['GET /readyz', 200, {}],
    ['GET /', 200, {}],
    ['GET /metrics', 200, admin],
    ['GET /v1/devices', 200, admin],
    ['GET /openapi.json', 200, {}],
    ['GET /v1/devices', 401, {}],
    ['GET /nothing', 404, {}],
    ['PUT /v1/heartbeat', 405, {}],
    ['GET /v1/devices?limit=0', 422, admin],
    ['POST /v1/heartbeat', 401, {}],
  ] as const) {
    const answer = await secure.call(call, { headers })
    t.match(answer, { status, headers: { 'strict-transport-security': YEAR } }, call)
    const other = await plain.call(call, { headers: { ...headers, 'x-forwarded-proto': 'https' } })
    t.equal(other.status, status, call)
    t.equal(other.headers.get('strict-transport-security'), null, `${call} behind a proxy, which has to say so itself`)
  }
})

t.test('over TLS the cookie of the page is only for TLS, whatever a header says', { skip }, async t => {
  for (const trustProxy of [false, true]) {
    const { url, call } = await withSecureServer(t, { trustProxy })
    const headers = {
      'content-type': 'application/x-www-form-urlencoded',
      origin: url,
      'x-forwarded-proto': 'http',
    }
    const body = new URLSearchParams({ key: ADMIN_KEY }).toString()
    const login = await call('POST /login', { headers, body })
    t.equal(login.status, 303)
    const [said = ''] = login.headers['set-cookie'] ?? []
    t.match(said, /^__Host-fleet_session=.*; Path=\/; HttpOnly; Secure; SameSite=Strict$/)
    const [cookie = ''] = said.split(';')
    t.match((await call('GET /', { headers: { cookie } })).text, /id="headline"/)
    t.match((await call('GET /', { headers: { cookie: cookie.replace('__Host-', '') } })).text, /name="key"/)
  }
})

t.test('/metrics says when the certificate expires, and the first of its chain', { skip }, async t => {
  const { call, issue, renew, certificate } = await withSecureServer(t)
  const headers = { 'x-admin': ADMIN_KEY }
  const expires = async () => {
    const { text } = await call('GET /metrics', { headers })
    return Number(/^tls_certificate_expires_seconds (\S+)$/m.exec(text)?.[1]) / 86_400 - Date.now() / 86_400_000
  }
  t.ok(Math.abs((await expires()) - 90) < 0.1, 'in 90 days')
  await renew(await issue('longer', { days: 1_000 }))
  for (let n = 0; n < 2; n++) await certificate!.check()
  t.ok(Math.abs((await expires()) - 300) < 0.1, 'the authority in the chain expires in 300 days')
  const plain = await withServer(t)
  t.notMatch((await plain.call('GET /metrics', { headers })).body, 'tls_certificate')
})

t.test('a renewed certificate is used without a restart, and an open connection goes on', { skip }, async t => {
  const { db, call, issue, renew, certificate } = await withSecureServer(t)
  const { token } = await enroll(db, 'a')
  const agent = new Agent({ keepAlive: true, maxSockets: 1 })
  t.teardown(() => agent.destroy())
  let beats = 0
  const send = () =>
    call('POST /v1/heartbeat', {
      agent,
      headers: { authorization: `Bearer ${token}` },
      body: JSON.stringify({ ts: ago(20 * ++beats) }),
    })
  const before = await send()
  t.match(before, { status: 201, shown: 'first' })
  await renew(await issue('second'))
  await certificate!.check()
  t.match(await call('GET /readyz'), { shown: 'first' }, 'who renews it may not be ready')
  await certificate!.check()
  t.match(await call('GET /readyz'), { status: 200, shown: 'second' })
  t.match(await send(), { status: 201, port: before.port }, 'the same connection')
})

t.test('each worker finds a renewed certificate by itself', { skip, timeout: 180_000 }, async t => {
  const db = await withDatabase(t)
  const { ca, issue } = await withAuthority(t)
  const files = await issue('first')
  const { server, url } = await withSecureProcess(t, db, files, ca)
  const shown = async () => (await secureCall(t, url, 'GET /readyz', { ca })).shown
  const agent = new Agent({ keepAlive: true, maxSockets: 1 })
  t.teardown(() => agent.destroy())
  const since = Date.now()
  const { port } = await secureCall(t, url, 'GET /readyz', { ca, agent })
  const next = await issue('second')
  for (const name of ['cert', 'key'] as const) await cp(next[name], files[name])
  // Connections are handed to the workers in turn.
  await waitFor(async () => [await shown(), await shown(), await shown(), await shown()].every(name => name === 'second'), {
    timeoutMs: 120_000,
    every: 1_000,
    what: () => server.output(),
  })
  t.equal(server.output().match(/"event":"tls.renewed"/g)?.length, 2)
  t.notMatch(server.output(), 'worker.exited')
  const again = await secureCall(t, url, 'GET /readyz', { ca, agent })
  t.equal(again.status, 200)
  // A worker closes idle connections after 90 seconds.
  if (Date.now() - since < 60_000) t.equal(again.port, port, 'the connection from before is still open')
})

async function withSecureProcess(
  t: Test,
  db: Awaited<ReturnType<typeof withDatabase>>,
  files: { cert: string; key: string },
  ca: string,
) {
  const { server, url: plain } = await withProcess(
    t,
    db,
    { WORKERS: '2', TLS_CERT: files.cert, TLS_KEY: files.key },
    async url => (await secureCall(t, url.replace('http:', 'https:'), 'GET /readyz', { ca })).status === 200,
  )
  await waitFor(async () => server.output().split('"worker.started"').length === 3)
  return { server, url: plain.replace('http:', 'https:') }
}

/** A certificate that follows its files, without a server of the store. */
async function withCertificate(t: Test) {
  const authority = await withAuthority(t)
  const files = await authority.issue('first')
  const lines: { level: string; event: string; error?: { message: string } }[] = []
  const log = createLog(
    'server',
    'info',
    new Writable({
      write(line: Buffer, _, done) {
        lines.push(JSON.parse(line.toString()) as (typeof lines)[0])
        done()
      },
    }),
  )
  const certificate = new Certificate(files, readPair(files), log)
  const server = createServer(certificate.options, (_, outgoing) => outgoing.end('yes')).listen(0, '127.0.0.1')
  t.teardown(() => server.close())
  await once(server, 'listening')
  certificate.follow(server)
  t.teardown(() => certificate.end())
  const url = `https://127.0.0.1:${(server.address() as AddressInfo).port}`
  const shown = async () => (await secureCall(t, url, 'GET /', { ca: authority.ca })).shown
  /** Reads the files as often as it takes to see that they do not change any more. */
  const settle = async () => {
    for (let n = 0; n < 3; n++) await certificate.check()
  }
  return { ...authority, files, lines, certificate, shown, settle }
}

t.test('a renewal that is broken or half done keeps the certificate from before, and a warning says why', { skip }, async t => {
  const { files, issue, lines, shown, settle } = await withCertificate(t)
  const [second, third] = [await issue('second'), await issue('third')]
  const text = { cert: await readFile(second.cert, 'utf8'), key: await readFile(second.key, 'utf8') }
  const half = text.cert.lastIndexOf('-----BEGIN') + 100
  const steps: [string, () => Promise<unknown>, RegExp][] = [
    [
      'the new certificate is there, and its key is not',
      () => cp(second.cert, files.cert),
      /^TLS_KEY \S+ is not the key of the certificate in TLS_CERT/,
    ],
    ['half of its chain', () => writeFile(files.cert, text.cert.slice(0, half)), /^TLS_CERT \S+ is not a certificate in PEM/],
    ['an empty file', () => truncate(files.cert), /^TLS_CERT \S+ is not a certificate/],
    ['no file', () => rm(files.cert), /^TLS_CERT \S+ cannot be read: ENOENT/],
    ['the certificate of another key', () => cp(third.cert, files.cert), /is not the key/],
    ['half of a key', () => writeFile(files.key, text.key.slice(0, 60)), /^TLS_KEY \S+ is not a private key in PEM/],
    ['a key of another kind', () => writeFile(files.key, text.cert), /^TLS_KEY \S+ is not a private key/],
  ]
  for (const [what, happens, message] of steps) {
    await happens()
    lines.length = 0
    await settle()
    await settle()
    t.match(lines, [{ level: 'warn', event: 'tls.not_renewed', error: { message } }], `${what}: one warning`)
    t.equal(lines.length, 1)
    t.notMatch(JSON.stringify(lines), /PRIVATE KEY|BEGIN/, 'nothing of a key is logged')
    t.equal(await shown(), 'first', what)
  }
  await cp(second.cert, files.cert)
  await cp(second.key, files.key)
  lines.length = 0
  await settle()
  t.match(lines, [{ level: 'info', event: 'tls.renewed' }])
  t.equal(await shown(), 'second', 'it is used as soon as both fit')
  lines.length = 0
  await settle()
  t.same(lines, [])
})

t.test('files that change at each read are left alone until they are still', { skip }, async t => {
  const { files, issue, lines, shown, certificate } = await withCertificate(t)
  const next = await issue('second')
  for (let n = 0; n < 5; n++) {
    await writeFile(files.cert, (await readFile(next.cert, 'utf8')) + '\n'.repeat(n))
    await cp(next.key, files.key)
    await certificate.check()
  }
  t.same([lines, await shown()], [[], 'first'])
  await certificate.check()
  t.equal(await shown(), 'second')
})

t.test('wrong settings are named, and nothing of a key is shown', { skip }, async t => {
  const { directory, issue } = await withAuthority(t)
  const { cert, key } = await issue('first')
  const other = await issue('second')
  const missing = join(directory, 'missing.pem')
  const DATABASE_URL = 'postgres://owner@127.0.0.1/fleet'
  const read = (env: Record<string, string>) => readConfig({ DATABASE_URL, ADMIN_KEY, ...env })
  t.match(read({ TLS_CERT: cert, TLS_KEY: key }).tls, { files: { cert, key } })
  t.equal(read({ TLS_CERT: '', TLS_KEY: '' }).tls, undefined)
  for (const [env, problem] of [
    [{ TLS_CERT: cert }, 'TLS_KEY is missing, but TLS_CERT is set; set both, or neither.'],
    [{ TLS_KEY: key }, 'TLS_CERT is missing, but TLS_KEY is set; set both, or neither.'],
    [{ TLS_CERT: missing, TLS_KEY: key }, `TLS_CERT ${missing} cannot be read: ENOENT`],
    [{ TLS_CERT: cert, TLS_KEY: missing }, `TLS_KEY ${missing} cannot be read: ENOENT`],
    [{ TLS_CERT: key, TLS_KEY: key }, `TLS_CERT ${key} is not a certificate in PEM`],
    [{ TLS_CERT: cert, TLS_KEY: cert }, `TLS_KEY ${cert} is not a private key in PEM`],
    [{ TLS_CERT: cert, TLS_KEY: other.key }, `TLS_KEY ${other.key} is not the key of the certificate in TLS_CERT ${cert}.`],
  ] as const) {
    const { problems } = t.throws(() => read(env)) as unknown as { problems: string[] }
    t.equal(problems.length, 1)
    t.ok(problems[0]!.startsWith(problem), problem)
    t.notMatch(problems[0], 'BEGIN')
  }
})

t.test(
  'a client that does not finish its handshake is cut off',
  { skip: skip || needsRealClock('it waits for a timeout'), timeout: 60_000 },
  async t => {
    const { url, call } = await withSecureServer(t)
    const idle = Array.from({ length: 20 }, () => connect(Number(new URL(url).port), '127.0.0.1').on('error', () => {}))
    for (const [n, socket] of idle.entries()) {
      t.teardown(() => socket.destroy())
      // The beginning of a record of the handshake.
      if (n % 2 === 0) socket.write(Buffer.from([0x16, 0x03, 0x01]))
    }
    t.equal((await call('GET /readyz')).status, 200)
    await Promise.all(idle.map(socket => answer(socket)))
    t.equal((await call('GET /readyz')).status, 200)
  },
)
