import { chmod, readdir, readFile, stat, writeFile } from 'node:fs/promises'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { repository } from '../lib/repository.ts'
import { shellcheck, systemdAnalyze } from '../testing/linters.ts'
import { withCluster } from '../testing/database.ts'
import { run, withDirectory, withSecrets } from '../testing/scripts.ts'

const here = join(repository, 'docker')

t.test('shellcheck finds nothing', { skip: shellcheck.without }, async t => {
  const scripts = (await readdir(here, { recursive: true })).filter(path => path.endsWith('.sh')).map(path => join(here, path))
  t.ok(scripts.length >= 4)
  t.same(await run('shellcheck', ['--severity=style', ...scripts]), { code: 0, output: '' })
})

t.test('settings come from files', async t => {
  const directory = await withDirectory(t)
  const file = (name: string) => join(directory, name)
  await writeFile(file('key'), `a 'key' with $HOME, "quotes" and \\ in it\n`)
  await writeFile(file('empty'), '\n')
  const print = (env: Record<string, string>) =>
    run('sh', ['docker/node/with-secrets.sh', 'sh', '-c', 'echo "$ADMIN_KEY|${ADMIN_KEY_FILE-gone}|$AWS_CONFIG_FILE"'], { env })
  t.same(
    await print({ ADMIN_KEY_FILE: file('key'), AWS_CONFIG_FILE: '/a/file' }),
    {
      code: 0,
      output: `a 'key' with $HOME, "quotes" and \\ in it|gone|/a/file\n`,
    },
    'unchanged, and AWS_CONFIG_FILE keeps its meaning',
  )
  t.same(await print({ ADMIN_KEY: 'given' }), { code: 0, output: 'given|gone|\n' })
  t.match(await print({ ADMIN_KEY_FILE: file('missing') }), { code: 2, output: /ADMIN_KEY_FILE: .*missing cannot be read/ })
  t.match(await print({ ADMIN_KEY_FILE: file('empty') }), { code: 2, output: /ADMIN_KEY_FILE: .*empty is empty/ })
  t.match(await print({ ADMIN_KEY_FILE: file('key'), ADMIN_KEY: 'given' }), {
    code: 2,
    output: /ADMIN_KEY and ADMIN_KEY_FILE are both set/,
  })
})

t.test('secrets are made once, and only the services that need one can read it', async t => {
  const directory = await withSecrets(t)
  const read = async () => {
    const files = (await readdir(directory, { recursive: true, withFileTypes: true }))
      .filter(entry => entry.isFile())
      .map(entry => join(entry.parentPath, entry.name))
    return Object.fromEntries(
      await Promise.all(files.map(async path => [path.slice(directory.length + 1), await readFile(path, 'utf8')] as const)),
    )
  }
  const before = await read()
  t.match(before['all/admin_key'], /^[0-9a-f]{48}$/)
  const random = Object.entries(before).filter(([path, text]) => /^all\/[^.]+$/.test(path) && text)
  t.equal(new Set(random.map(([, text]) => text)).size, 10, 'ten different secrets')
  t.equal(before['server/admin_key'], before['all/admin_key'])
  t.equal(before['pgbouncer/userlist.txt'], `"fleet_server" "${before['all/fleet_server_password']}"\n`)
  t.match(JSON.parse(before['objects/s3.json'] ?? ''), {
    identities: [{ credentials: [{ accessKey: before['archiver/s3_access_key'], secretKey: before['archiver/s3_secret_key'] }] }],
  })
  for (const path of Object.keys(before)) {
    t.equal((await stat(join(directory, path))).mode & 0o777, path.startsWith('all/') ? 0o600 : 0o400, path)
  }
  if (process.getuid?.() === 0) t.equal((await stat(join(directory, 'postgres/postgres_password'))).uid, 999)

  t.equal((await run('sh', ['docker/secrets/make.sh', directory])).code, 0)
  t.same(await read(), before, 'a second run changes nothing')
  await chmod(join(directory, 'all/admin_key'), 0o600)
  await writeFile(join(directory, 'all/admin_key'), 'a-key-of-my-own-choice')
  t.equal((await run('sh', ['docker/secrets/make.sh', directory])).code, 0)
  t.match(await read(), { 'server/admin_key': 'a-key-of-my-own-choice', 'prometheus/admin_key': 'a-key-of-my-own-choice' })
  t.equal((await run('sh', ['docker/secrets/make.sh'])).code, 2)
})

t.test('the image of Postgres starts the official entrypoint with settings for its memory', async t => {
  const directory = await withDirectory(t)
  const entrypoint = join(directory, 'docker-entrypoint.sh')
  await writeFile(entrypoint, '#!/bin/sh\necho "$@"\n', { mode: 0o755 })
  const env = { PATH: `${directory}:/usr/bin:/bin`, TMPDIR: directory }
  const conf = join(directory, 'postgresql.conf')
  t.same(await run('sh', ['docker/postgres/start.sh', '-c', 'log_statement=all'], { env }), {
    code: 0,
    output: `postgres -c config_file=${conf} -c log_statement=all\n`,
  })
  const text = await readFile(conf, 'utf8')
  t.match(text, /^listen_addresses = '\*'$/m)
  t.match(text, `max_worker_processes = ${16 + availableParallelism()}`)
  t.equal(text.split('\n').slice(1).join('\n'), (await run('sh', ['docker/postgres/tune.sh'])).output)
})

t.test('settings of Postgres are sized by memory', async t => {
  const tune = (...args: string[]) => run('sh', ['docker/postgres/tune.sh', ...args])
  for (const args of [['4GB'], ['511'], ['-1'], ['4096', "fleet'"], ['4096', 'fleet', 'x']])
    t.match(await tune(...args), { code: 2, output: /^usage: / }, args.join(' '))
  for (const [memory, shared, maintenance] of [
    [512, 128, 32],
    [2048, 512, 102],
    [16384, 4096, 512],
    [262144, 4096, 512],
  ] as const) {
    const { output } = await tune(String(memory))
    t.match(output, `shared_buffers = ${shared}MB\neffective_cache_size = ${Math.floor(memory * 0.6)}MB\n`)
    t.match(output, `maintenance_work_mem = ${maintenance}MB`)
  }

  // A plain server with 4 GB, no matter what this machine has.
  const { cluster, admin, url } = await withCluster(t, { durable: true })
  await admin.unsafe(
    `create or replace function fleet_guard.memory_bytes() returns bigint language sql as 'select 4::bigint << 30'`,
  )
  const { output } = await tune('4096')
  await admin.end({ timeout: 5 })
  await cluster.stop()
  await writeFile(join(cluster.data, 'postgresql.conf'), `\n${output}`, { flag: 'a' })
  await cluster.start()
  t.match(await run(cluster.program('psql'), ['-AXtc', 'show shared_buffers', url('postgres')]), { code: 0, output: '1GB\n' })
  const checks = await run(cluster.program('psql'), [
    '-AXt',
    '-F',
    ' ',
    '-c',
    `
    select check_name, status, detail from fleet.check() where check_name like 'setting\\_%' or check_name in ('scheduler', 'connections')
  `,
    url('fleet_dba'),
  ])
  t.equal(checks.code, 0, checks.output)
  const lines = checks.output.trim().split('\n')
  t.ok(lines.length >= 9, checks.output)
  t.same(
    lines.filter(line => line.split(' ')[1] !== 'ok'),
    [],
  )
  t.notMatch(await cluster.logTail(50), /WARNING|unrecognized/)
})

t.test('the systemd units are well-formed and confined', { skip: systemdAnalyze.without }, async t => {
  const directory = await withDirectory(t)
  for (const name of await readdir(join(here, 'systemd'))) {
    const unit = await readFile(join(here, 'systemd', name), 'utf8')
    const [, script = ''] = /^ExecStart=\/usr\/bin\/node --enable-source-maps (\S+)$/m.exec(unit) ?? []
    await t.resolves(stat(join(repository, script)), `${name}: ${script}`)
    // With paths of this machine, because it also checks that the program exists.
    const path = join(directory, name)
    await writeFile(path, unit.replaceAll('/opt/nexmdm', repository).replace('/usr/bin/node', process.execPath))
    // It also complains of units of this machine.
    const verified = await run('systemd-analyze', ['verify', '--man=no', path])
    t.equal(verified.code, 0, verified.output)
    t.same(
      verified.output.split('\n').filter(line => line !== '' && !/^\/(usr\/)?lib\/systemd\//.test(line)),
      [],
      name,
    )
    // The score goes up to 100. A service without any confinement has 92.
    const { code, output } = await run('systemd-analyze', ['security', '--offline=yes', '--threshold=20', '--no-pager', path])
    t.equal(code, 0, output.split('\n').slice(-3).join('\n'))
  }
})
