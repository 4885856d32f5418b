import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { runOnce, withRetiredDay } from '../testing/archiver.ts'
import { createLog } from './log.ts'
import { spawnProgram, waitFor, withDatabase } from '../testing/database.ts'
import { ADMIN_KEY, enroll, gatewayToken, serverEnv, withProcess } from '../testing/server.ts'
import { built, repository } from './repository.ts'

interface Line {
  event?: string
  request_id?: string
  status?: number
  message?: string
  [field: string]: unknown
}

function linesOf(output: string) {
  return output
    .split('\n')
    .filter(line => line.startsWith('{'))
    .map(line => JSON.parse(line) as Line)
}

t.test('no token and no key is ever logged, wherever it is in a request', async t => {
  const db = await withDatabase(t)
  const { device_id, token } = await enroll(db, 'a')
  const [made] = await db.sql<{ key: string }[]>`select fleet.create_api_key('k', '{read,enroll,command,operate}') as key`
  const secrets = [token, await gatewayToken(db, 'g'), ADMIN_KEY, made!.key]
  const { server, call } = await withProcess(t, db, { LOG_LEVEL: 'trace', TRUST_PROXY: 'true' })
  const targets = [
    'POST /v1/heartbeat',
    'POST /v1/heartbeats',
    'POST /admin/devices',
    'POST /admin/command',
    'POST /ops/nightly',
    'GET /v1/devices',
    `GET /v1/devices/${device_id}`,
    'GET /v1/commands',
    'GET /metrics',
    'DELETE /nothing',
    'POST /login',
    'GET /',
  ]
  const hostile = async () => {
    for (const [n, secret] of secrets.entries()) {
      const encoded = secret.replace('_', '%5F')
      for (const target of targets) {
        for (const path of [
          target,
          `${target}/${secret}/${encoded}`,
          `${target}?status=${secret}&${secret}=1&retention_days=${secret}`,
        ]) {
          if (path === 'POST /ops/nightly') continue // with the right key it would run the night dozens of times
          const bodies = path.startsWith('POST')
            ? [
                { agent_version: secret.slice(0, 64) },
                secret,
                [{ agent_version: secret, device_id, ts: secret }, { device_id: secret }],
                { device_id, ts: secret, battery_pct: secret },
                { alias: secret, cohort: secret },
                { device_id, command: secret, payload: { [secret]: secret } },
                { alias: secret, [secret]: secret },
              ]
            : [undefined]
          for (const body of bodies) {
            for (const headers of [
              // Each from its own address, so that the limit on wrong keys does not delay the right key.
              {
                authorization: `Bearer ${secret}`,
                'x-request-id': secret,
                'x-admin': secret,
                'user-agent': secret,
                'x-forwarded-for': `192.0.2.${n}`,
              },
              { authorization: secret, 'x-request-id': `a-${secret}`, cookie: secret, 'content-type': `text/${secret}` },
              {
                authorization: `Bearer ${token}`,
                'x-admin': ADMIN_KEY,
                'content-encoding': body === undefined ? 'identity' : secret,
              },
            ])
              await call(path, { ...(body !== undefined && { body }), headers: headers as unknown as Record<string, string> })
          }
        }
      }
    }
  }
  await hostile()
  // Then with a database that fails and reports why.
  await db.admin`alter table fleet.devices add constraint devices_never check (alias is null) not valid`
  await db.admin`alter table fleet.device_heartbeats add constraint heartbeats_never check (agent_version is null) not valid`
  await hostile()
  await server.stop('SIGTERM')
  const lines = linesOf(server.output())
  t.ok(lines.filter(line => line.event === 'http.error' && line.request_id).length > 500)
  t.ok(
    lines.some(line => line.status === 500),
    'failures are logged',
  )
  t.ok(lines.some(line => line.event === 'heartbeat.write_failed'))
  t.ok(server.output().includes('nxd_***'), 'a token was redacted')
  for (const secret of secrets)
    t.notOk(server.output().includes(secret.replace(/^nx._/, '').slice(0, 20)), `${secret.slice(0, 4)} is not in the log`)
})

t.test('a request id is taken from the request or made, and is in the answer and in the log', async t => {
  const db = await withDatabase(t)
  const { token } = await enroll(db, 'a')
  const { server, call } = await withProcess(t, db, { LOG_LEVEL: 'debug' })
  const ask = async (id?: string) => {
    const { headers, body } = await call('POST /v1/heartbeat', {
      token,
      body: 'x',
      ...(id !== undefined && { headers: { 'x-request-id': id } }),
    })
    const made = headers.get('x-request-id')!
    t.match(body, { status: 400, request_id: made })
    await waitFor(async () => linesOf(server.output()).some(line => line.event === 'http.error' && line.request_id === made))
    return made
  }
  t.equal(await ask('01JD-trace:7.a_b'), '01JD-trace:7.a_b')
  for (const id of [undefined, '', 'with space', 'é', '"', 'x'.repeat(129), `nxd_${'0'.repeat(64)}`]) {
    t.match(await ask(id), /^[0-9a-f]{8}-[0-9a-f-]{27}$/, String(id))
  }
  t.not(await ask(), await ask())
  for (const target of ['GET /nothing', 'GET /v1/heartbeat', 'GET /metrics']) {
    const { headers, body } = await call(target, { headers: { 'x-request-id': 'mine' } })
    t.equal(headers.get('x-request-id'), 'mine')
    t.match(body, { request_id: 'mine' })
  }
  t.equal(
    (await call('POST /v1/heartbeat', { token, body: {}, headers: { 'x-request-id': 'mine' } })).headers.get('x-request-id'),
    null,
    'a successful answer has none',
  )
})

t.test('in a terminal the log is formatted for people, unless JSON is requested', async t => {
  const db = await withDatabase(t)
  const start = (LOG_FORMAT?: string) =>
    // eslint-disable-next-line no-restricted-syntax -- script takes a command line only; it is node
    spawnProgram(t, 'script', ['-qec', `${process.execPath} ${built('server/main.ts')}`, '/dev/null'], {
      env: { ...serverEnv(db), ...(LOG_FORMAT && { LOG_FORMAT }), TERM: 'xterm' },
      ready: /server\.listening/,
    })
  const people = await start()
  t.match(
    // eslint-disable-next-line no-control-regex -- the terminal's colours
    people.output().replaceAll(/\u001b\[[\d;]*m/g, ''),
    /^\[\d\d:\d\d:\d\d\.\d{3}\] INFO: server server\.listening .*"port":\d+/m,
  )
  t.notMatch(people.output(), /^\{/m)
  const json = await start('json')
  t.match(
    linesOf(json.output()).find(line => line.event === 'server.listening'),
    { service: 'server', level: 'info', port: Number },
  )
})

t.test('the server logs what it is asked to do with partitions, and the archiver logs what it did', async t => {
  const { db, directory, partition } = await withRetiredDay(t)
  const { server, call } = await withProcess(t, db)
  await call('POST /ops/nightly', { admin: true })
  await call('POST /ops/reconcile', { admin: true })
  await waitFor(async () => server.output().includes('reconciliation.completed'))
  const lines = linesOf(server.output())
  t.match(
    lines.find(line => line.event === 'nightly.end'),
    { service: 'server', ok: true },
  )
  t.match(
    lines.find(line => line.event === 'reconciliation.completed'),
    { checked: Number, updated: Number, elapsed_ms: Number },
  )
  const { code, events } = await runOnce(t, db, directory)
  t.equal(code, 0)
  const about = { service: 'archiver', level: 'info', partition }
  t.match(
    events.find(line => line.event === 'partition.archive.start'),
    about,
  )
  t.match(
    events.find(line => line.event === 'partition.archive.end'),
    { ...about, rows: 1000, duration_ms: Number },
  )
  t.match(
    events.find(line => line.event === 'partition.drop'),
    { ...about, rows: 1000, duration_ms: Number },
  )
})

t.test('neither the secret of a webhook nor the user of a URL is logged, wherever it is in a line', async t => {
  const lines: string[] = []
  const log = createLog('notifier', 'trace', { write: line => void lines.push(line) })
  const secret = `whsec_${'aB3/+'.repeat(8)}abc=`
  log.error({
    event: 'x',
    error: new Error(`it is ${secret}`, { cause: new Error(`${secret} "https://user:hunter2@example.com/a"`) }),
  })
  log.info({ event: 'x', [secret]: [secret, 'http://hunter2@example.com?next=https://a:hunter2@b'] }, secret)
  t.equal(lines.length, 2)
  t.notMatch(lines.join(''), /aB3|hunter2/)
  t.match(lines.join(''), /whsec_\*\*\*[^]*https:\/\/\*\*\*@example\.com\/a/)
})

t.test('every event that the runbook names exists', async t => {
  const runbook = await readFile(join(repository, 'RUNBOOK.md'), 'utf8')
  const section = runbook.split('## Read the log')[1]!.split('\n## ')[0]!
  const sources = [
    'archiver/worker.ts',
    'archiver/archive/partition.ts',
    'archiver/restore/restore.ts',
    'notifier/outbox.ts',
    'server/app.ts',
    'server/certificate.ts',
    'server/ingest/writer.ts',
    'server/ingest/backpressure.ts',
    'server/workers.ts',
    'server/fleet/device-reads.ts',
    'server/reader.ts',
    'sql/status/reconcile.sql',
    'sql/partitions/ensure_partitions.sql',
    'sql/partitions/create_partitions.sql',
    'sql/partitions/retire_partition.sql',
    'sql/partitions/sync_partitions.sql',
    'sql/partitions/premake.sql',
  ]
  const text = (await Promise.all(sources.map(file => readFile(join(repository, file), 'utf8')))).join('')
  for (const [, event = ''] of section.matchAll(/`([a-z_]+\.[a-z_.]+)`/g))
    t.ok(event.startsWith('fleet.') || text.includes(`'${event}'`), event)
})
