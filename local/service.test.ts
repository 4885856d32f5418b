import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { freePort } from './cluster.ts'
import { plainEnv } from './config.ts'
import { graveLine, Service } from './service.ts'
import { waitFor, withDatabase } from '../testing/database.ts'

t.test('a log line is shown if it is a warning or worse', async t => {
  t.equal(graveLine('{"level":"info","event":"server.listening"}'), undefined)
  t.equal(graveLine('{"level":30,"message":"x"}'), undefined)
  t.equal(graveLine('not json'), undefined)
  t.equal(graveLine('null'), undefined)
  t.equal(graveLine('{"level":"warn","event":"http.error","error":{"message":"lost"}}'), 'http.error: lost')
  t.equal(
    graveLine('{"level":50,"event":"a.b","message":"failed.","error":{"message":"why","cause":{"message":"what"}}}'),
    'a.b: failed: why: what',
  )
})

t.test('a service', async t => {
  const db = await withDatabase(t)
  const dir = await mkdtemp(join(tmpdir(), 'nexmdm-service-'))
  t.teardown(() => rm(dir, { recursive: true, force: true }))
  const port = await freePort(true)
  const url = `http://127.0.0.1:${port}/readyz`
  const isUp = () =>
    fetch(url).then(
      answer => answer.ok,
      () => false,
    )
  const make = (env: Record<string, string>) => {
    let fail: (error: Error) => void = () => {}
    const failed = new Promise<Error>(resolve => {
      fail = resolve
    })
    const service = new Service({
      name: 'server',
      script: 'server/main.ts',
      log: join(dir, 'server.log'),
      env: { ...plainEnv(), ...env },
      onFailure: fail,
    })
    t.teardown(() => service.kill())
    return { service, failed }
  }

  await t.test('is restarted when it dies, and stops when asked', async t => {
    const { service } = make({ DATABASE_URL: db.url('postgres'), PORT: String(port), ADMIN_KEY: 'k'.repeat(32), WORKERS: '1' })
    await service.start()
    await waitFor(isUp)
    service.isReady = true
    const pid = () => readFile(join(dir, 'server.log'), 'utf8').then(text => Number(/.*"pid":(\d+)/s.exec(text)?.[1]))
    process.kill(await pid(), 'SIGKILL')
    await waitFor(async () => !(await isUp()))
    await waitFor(isUp)
    await service.stop()
    t.notOk(await isUp())
    t.match(await service.logTail(), /server.stopp/)
  })

  await t.test('with wrong settings is not restarted', async t => {
    const { service, failed } = make({ PORT: 'none' })
    await service.start()
    t.match((await failed).message, /The server ended unexpectedly \(code 2\)[^]*PORT/)
    await service.stop()
  })
})
