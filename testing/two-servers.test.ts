// Runs the commands and settings of docs/two-servers.md on one machine, with other addresses. systemd, DNS and S3 are left out.
import { chown, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import t from 'tap'
import { makeDirectory } from './archiver.ts'
import { clusterUser, freePort, throwawayCluster } from '../local/cluster.ts'
import { plainEnv } from '../local/config.ts'
import { find } from './optional-programs.ts'
import { spawnNode, spawnProgram, testCluster, waitFor } from './database.ts'
import { shellTools } from './shell-tools.ts'
import { topology } from './topology.ts'
import { blocksOf, readPage, runShell } from './pages.ts'

const page = await readPage('docs/two-servers.md')
const block = (language: string) => blocksOf(page, language).join('\n')

/** The settings in a block, read as a service manager reads them. */
function settings(text: string) {
  return Object.fromEntries(
    text
      .trim()
      .split('\n')
      .map(line => /^(\w+)='?(.*?)'?$/.exec(line)!.slice(1) as [string, string]),
  )
}

/** The text with other addresses instead of the page's. */
function moved(text: string, places: Record<string, string>) {
  return Object.entries(places).reduce((moved, [from, to]) => moved.replaceAll(from, to), text)
}

t.test(
  'docs/two-servers.md sets up two servers, an archiver and a balancer, over TLS',
  { skip: topology.without || shellTools.without, timeout: 300_000 },
  async t => {
    const { postgres } = testCluster()
    const { cluster, end } = await throwawayCluster({ postgres, databases: ['fleet'], cronDatabase: 'fleet' })
    t.teardown(end)
    const directory = await makeDirectory(t)
    const done = async (command: string, options?: { env?: Record<string, string>; input?: string }) => {
      const env = { PATH: `${postgres.bin}:${plainEnv().PATH}:/usr/sbin`, HOME: directory, ...options?.env }
      const { code, output } = await runShell(command, env, options)
      if (code !== 0) throw new Error(`${command}\n${output}`)
      return output
    }

    // A certificate from our own authority, for Postgres and for the balancer.
    const place = (name: string) => join(directory, name)
    await done(
      [
        `openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=Authority -keyout ca.key -out ca.pem`,
        `openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr`,
        `printf 'subjectAltName = DNS:localhost, IP:127.0.0.1\\n' > names`,
        `openssl x509 -req -days 2 -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names -out server.crt`,
        `cat server.crt server.key > fleet.pem`,
      ]
        .map(command => `(cd ${directory} && ${command}) 2>&1`)
        .join('\n'),
    )
    const user = clusterUser()
    const forPostgres = ['server.crt', 'server.key'].map(name => join(cluster.dir, name)) as [string, string]
    for (const file of forPostgres) {
      await writeFile(file, await readFile(place(file.slice(cluster.dir.length + 1))), { mode: 0o600 })
      if (user) await chown(file, user.uid, user.gid)
    }
    const conf = moved(block('conf'), {
      '/etc/postgresql/15/main/server.crt': forPostgres[0],
      '/etc/postgresql/15/main/server.key': forPostgres[1],
      'localhost, 10.0.0.10': '127.0.0.1',
    })
    await writeFile(join(cluster.data, 'postgresql.conf'), `\n${conf}`, { flag: 'a' })
    // The first line replaces the superuser's socket.
    const hba = block('pg_hba').replace('10.0.0.0/24', '127.0.0.1/32')
    await writeFile(join(cluster.data, 'pg_hba.conf'), `host all postgres 127.0.0.1/32 scram-sha-256\n${hba}`)
    await cluster.stop()
    await cluster.start()

    const superuser = cluster.url('postgres', 'fleet')
    const setup = /sudo -u postgres psql (-v ON_ERROR_STOP=1 [^]*?) fleet$/m.exec(page)![1]!
    await done(`psql -q ${setup} '${superuser}'`)
    await done(`psql ${/sudo -u postgres psql (-c 'alter role .*') fleet$/m.exec(page)![1]!} '${superuser}'`)
    const [, names = '', loop = ''] = /^for role in ([\w ]+); do sudo -u postgres psql (.*) fleet; done$/m.exec(page)!
    for (const role of names.split(' ')) {
      await done(`role=${role}; psql ${loop} '${superuser}'`, { input: `${role.toUpperCase()}\n`.repeat(2) })
    }

    const places = {
      'db.example.com:5432': `127.0.0.1:${cluster.port}`,
      '/etc/nexmdm/ca.pem': place('ca.pem'),
      '10.0.0.11': '127.0.0.1',
      's3://fleet-archive/heartbeats': pathToFileURL(place('archive')).href,
    }
    const migrating = moved(block('sh'), places)
    const untrusted = await runShell(migrating.replace(/^NODE_EXTRA_CA_CERTS=\S+ \\\n/, ''), {})
    t.match(untrusted, { code: 1, output: /unable to verify|self-signed/ }, 'an unknown authority is not trusted')
    t.match(await done(migrating), /sql\/setup\/guard.sql needs an administrator and was not run[^]*The database is up to date/)

    const ports: [number, number] = [await freePort(true), await freePort(true)]
    const serverEnv = settings(moved(block('server.env'), places))
    await Promise.all(
      ports.map(port =>
        spawnNode(t, 'server/main.ts', {
          env: { ...serverEnv, PORT: String(port), WORKERS: '1' },
          ready: `http://127.0.0.1:${port}/readyz`,
        }),
      ),
    )
    const archiverEnv = settings(moved(block('archiver.env'), places))
    await spawnNode(t, 'archiver/main.ts', { env: { ...archiverEnv, TMPDIR: directory }, ready: /"archiver.ready"/ })

    const own = { devices: await freePort(true), operators: await freePort(true), stats: await freePort(true) }
    const balancerEnv = settings(
      moved(block('haproxy.env'), {
        '10.0.0.11:8080': `127.0.0.1:${ports[0]}`,
        '10.0.0.12:8080': `127.0.0.1:${ports[1]}`,
        '10.0.0.5:8081': `127.0.0.1:${own.operators}`,
        '10.0.0.5:8404': `127.0.0.1:${own.stats}`,
        ':443': `127.0.0.1:${own.devices}`,
      }),
    )
    const bind = moved(block('haproxy.cfg'), { '/etc/haproxy/fleet.pem': place('fleet.pem') })
    const haproxy = await readFile('docker/haproxy/haproxy.cfg', 'utf8')
    t.match(haproxy, '  bind "${BALANCER_BIND}"\n')
    await writeFile(place('haproxy.cfg'), haproxy.replace('  bind "${BALANCER_BIND}"\n', bind))
    await done(`haproxy -c -f ${place('haproxy.cfg')}`, { env: balancerEnv })
    const balancer = await spawnProgram(t, find('haproxy'), ['-db', '-f', place('haproxy.cfg')], {
      env: balancerEnv,
      ready: `http://127.0.0.1:${own.stats}/metrics`,
    })
    const curl = (path: string, options = '') =>
      done(`curl -sS --cacert ${place('ca.pem')} ${options} https://localhost:${own.devices}${path}`)
    await waitFor(
      async () =>
        curl('/readyz').then(
          answer => answer === '{"status":"ready"}',
          () => false,
        ),
      { what: balancer.output },
    )

    const admin = { 'x-admin': serverEnv.ADMIN_KEY!, 'content-type': 'application/json' }
    const enrolled = await fetch(`http://127.0.0.1:${own.operators}/admin/devices`, {
      method: 'POST',
      headers: admin,
      body: '{"alias":"a"}',
    })
    const { token } = (await enrolled.json()) as { token: string }
    t.match(
      await curl('/v1/heartbeat', `-H 'Authorization: Bearer ${token}' -H 'Content-Type: application/json' -d '{}'`),
      /"result":"stored"/,
    )
    const unencrypted = `postgres://fleet_server:FLEET_SERVER@127.0.0.1:${cluster.port}/fleet?sslmode=disable`
    const plain = await runShell(`psql -c 'select 1' '${unencrypted}'`, { PATH: `${postgres.bin}:/usr/bin:/bin` })
    t.match(plain.output, /no pg_hba.conf entry.*no encryption/, 'nobody can connect without TLS')
    const ask = (statement: string) => done(`psql -AXtc "${statement}" '${superuser}'`)
    t.equal(
      await ask(`
    select bool_and(ssl), count(*) > 3 from pg_stat_ssl join pg_stat_activity using (pid) where usename in ('fleet_server', 'fleet_archiver')
  `),
      't|t\n',
    )

    const pool = await freePort(true)
    const ini = moved(await readFile('docker/pgbouncer/pgbouncer.ini', 'utf8'), {
      'host=postgres port=5432': `host=127.0.0.1 port=${cluster.port}`,
      'listen_addr = *': 'listen_addr = 127.0.0.1',
      'listen_port = 6432': `listen_port = ${pool}`,
      '/etc/pgbouncer/userlist.txt': join(cluster.dir, 'userlist.txt'),
    })
    const tls = moved(block('pgbouncer.ini'), {
      '/etc/postgresql/15/main/server.crt': forPostgres[0],
      '/etc/postgresql/15/main/server.key': forPostgres[1],
    })
    for (const [name, text] of [
      ['pgbouncer.ini', `${ini}\n${tls}`],
      ['userlist.txt', block('userlist')],
    ] as const) {
      await writeFile(join(cluster.dir, name), text, { mode: 0o600 })
      if (user) await chown(join(cluster.dir, name), user.uid, user.gid)
    }
    await spawnProgram(t, find('pgbouncer'), [join(cluster.dir, 'pgbouncer.ini')], {
      cwd: cluster.dir,
      ...user,
      ready: /process up/,
    })
    const through = settings(moved(block('pgbouncer.env'), { 'db.example.com:6432': `127.0.0.1:${pool}` }))
    const third = await freePort(true)
    const pooled = await spawnNode(t, 'server/main.ts', {
      env: { ...serverEnv, ...through, PORT: String(third), WORKERS: '1' },
      ready: `http://127.0.0.1:${third}/readyz`,
    })
    const stored = await fetch(`http://127.0.0.1:${third}/v1/heartbeats`, {
      method: 'POST',
      headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
      body: JSON.stringify([{ ts: new Date(Date.now() - 60_000).toISOString() }]),
    })
    t.match(await stored.json(), { stored: 1 }, pooled.output())
    t.equal(await ask(`select string_agg(detail, '; ') from fleet.check() where status = 'fail'`), '\n', 'nothing is wrong')
  },
)
