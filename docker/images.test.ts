import { existsSync } from 'node:fs'
import { readdir, readFile } from 'node:fs/promises'
import { join, relative } from 'node:path'
import { validate } from 'dockerfile-utils'
import t from 'tap'
import { built, repository } from '../lib/repository.ts'
import { dockerCompose } from '../testing/linters.ts'
import { spawnProgram } from '../testing/database.ts'
import {
  buildOf,
  composeFile,
  copiesOf,
  readCompose,
  readDockerfile,
  readIgnore,
  withImage,
  type Service,
} from '../testing/images.ts'
import { run, withSecrets } from '../testing/scripts.ts'

const here = join(repository, 'docker')
const { services, volumes, networks } = await readCompose()
const all = Object.entries(services)
const dockerfiles = (await readdir(here, { recursive: true }))
  .filter(path => path.endsWith('Dockerfile'))
  .map(path => join(here, path))

t.test('every Dockerfile is well-formed, builds on an exact version, and belongs to a service', async t => {
  t.ok(dockerfiles.length >= 4)
  for (const path of dockerfiles) {
    const name = relative(repository, path)
    t.same(validate(await readFile(path, 'utf8')), [], name)
    const dockerfile = await readDockerfile(path)
    for (const from of dockerfile.getFROMs()) t.match(from.getImage(), /:v?\d+\.\d+(\.\d+)?(-[a-z-]+)?$/, name)
    t.not(lastUser(dockerfile), 'root', `${name} does not end as root`)
    t.ok(
      all.some(([, service]) => buildOf(service)?.dockerfile === path),
      `${name} is built by compose.yaml`,
    )
  }
})

t.test('files that a Dockerfile copies are in its context, and not ignored', async t => {
  const isIgnored = await readIgnore()
  for (const [name, service] of all) {
    const build = buildOf(service)
    if (!build) continue
    t.ok(existsSync(build.dockerfile), name)
    for (const { sources } of copiesOf(await readDockerfile(build.dockerfile))) {
      for (const source of sources) {
        t.ok(existsSync(join(build.context, source)), `${name}: ${source}`)
        if (build.context === `${repository}/`) t.notOk(isIgnored(source), `${name}: ${source}`)
      }
    }
  }
  for (const path of [
    '.git/config',
    '.local/env',
    'node_modules/tap/package.json',
    'server/app.test.ts',
    'docker/compose.yaml',
    'RUNBOOK.md',
  ]) {
    t.ok(isIgnored(path), `${path} is in no image`)
  }
})

t.test('the node image has everything that its commands import, and no test files', async t => {
  const image = await withImage(t)
  const files = await readdir(image, { recursive: true })
  t.same(
    files.filter(file => /\.test\.|(^|\/)testing\//.test(file) && !file.startsWith('node_modules')),
    [],
  )
  for (const [script, code] of [
    ['server/main.ts', 2],
    ['archiver/main.ts', 2],
    ['archiver/cli.ts', 2],
    ['notifier/main.ts', 2],
    ['cli/migrate.ts', 2],
    ['cli/logins.ts', 2],
    ['docker/node/make-bucket.ts', 1],
    ['cli/check.ts', 1],
  ] as const) {
    const process = await spawnProgram(t, globalThis.process.execPath, [built(script, image)], { cwd: image })
    t.equal((await process.exited).code, code, process.output())
    t.notMatch(process.output(), /ERR_MODULE_NOT_FOUND|Cannot find/, `${script} gets as far as its settings`)
  }
})

t.test('docker-compose accepts compose.yaml', { skip: dockerCompose.without }, async t => {
  // Debian's docker-compose does not know the name of a project yet.
  const yaml = (await readFile(composeFile, 'utf8')).replace(/^name: .*$/m, '')
  const { code, output } = await run('docker-compose', ['-f', '-', 'config', '-q'], { cwd: here, input: yaml })
  t.equal(code, 0, output)
  t.equal(output.trim(), '')
})

t.test('every service is confined', async t => {
  const { version } = JSON.parse(await readFile(join(repository, 'package.json'), 'utf8')) as { version: string }
  for (const [name, service] of all) {
    t.ok(service.read_only, name)
    t.same(service.cap_drop, ['ALL'], name)
    t.same(service.cap_add ?? [], name === 'secrets' ? ['CHOWN'] : [], name)
    t.same(service.security_opt, ['no-new-privileges:true'], name)
    t.match(service, { cpus: Number, mem_limit: /^\d+[MG]$/, pids_limit: Number }, name)
    t.match(service.image, service.image.startsWith('nexmdm/node:') ? `nexmdm/node:${version}` : /:\d+\.\d+(\.\d+)?$/, name)
    for (const port of service.ports ?? []) t.match(port, /^127\.0\.0\.1:\d+:\d+$/, name)
    t.equal(await isRoot(service), name === 'secrets', name)
  }
  const settings = (await run('sh', ['docker/postgres/tune.sh', '4096'])).output
  const processes = ['max_connections', 'max_worker_processes'].map(name =>
    Number(new RegExp(`^${name} = (\\d+)$`, 'm').exec(settings)?.[1]),
  )
  t.ok(
    (services.postgres?.pids_limit ?? 0) > processes.reduce((sum, n) => sum + n, 0) + 20,
    `Postgres may have ${processes.join(' + ')} processes`,
  )
  t.same(services.secrets?.network_mode, 'none', 'and the service that runs as root has no network')
  t.same(
    Object.entries(networks)
      .filter(([, network]) => !(network as { internal?: boolean } | null)?.internal)
      .map(([name]) => name),
    ['edge', 'outside'],
  )
  t.same(
    all.filter(([, service]) => service.networks?.includes('outside')).map(([name]) => name),
    ['notifier'],
    'only the notifier reaches the internet',
  )
  for (const [name, service] of all) if (service.networks?.includes('edge')) t.ok(service.ports, `${name} is published`)
})

t.test('each service waits only for services that exist and become ready', async t => {
  for (const [name, service] of all) {
    for (const [other, { condition }] of Object.entries(service.depends_on ?? {})) {
      const target = services[other]
      t.ok(target, `${name}: ${other}`)
      if (condition === 'service_healthy') t.ok(await hasHealthcheck(target!), `${name}: ${other} has a healthcheck`)
      else
        t.match(
          { condition, restart: target?.restart },
          { condition: 'service_completed_successfully', restart: 'no' },
          `${name}: ${other} ends`,
        )
    }
    const isOnce = service.restart === 'no'
    t.equal(await hasHealthcheck(service), !isOnce && name !== 'archiver' && name !== 'notifier', name)
  }
})

t.test('the nodes of a distributed store start only with their profile, with what npm run distribute wants', t => {
  const nodes = all.filter(([name]) => name.startsWith('citus-'))
  t.same(
    nodes.map(([name]) => name),
    ['citus-coordinator', 'citus-worker-1', 'citus-worker-2'],
  )
  for (const [name, { profiles, command = [], pids_limit }] of all) {
    if (!name.startsWith('citus-')) {
      t.equal(profiles, undefined, name)
      continue
    }
    t.same(profiles, ['citus'], name)
    const settings = new Map(command.map(argument => /^-c([\w.]+)=(.*)$/.exec(argument)?.slice(1, 3) as [string, string]))
    t.equal(settings.get('shared_preload_libraries'), name === 'citus-coordinator' ? 'citus,pg_cron' : 'citus', name)
    t.ok(Number(settings.get('max_prepared_transactions')) > 0, name)
    t.equal(settings.get('wal_level'), 'logical', name)
    for (const setting of ['max_wal_senders', 'max_replication_slots', 'max_logical_replication_workers'])
      t.ok(Number(settings.get(setting)) >= 4, `${name}: ${setting}`)
    t.ok(pids_limit >= 500, name)
  }
  t.end()
})

t.test('every volume and every file that is mounted exists', async t => {
  const used = new Set<string>()
  for (const [name, service] of all) {
    for (const { source } of mounts(service)) {
      if (source.startsWith('.')) t.ok(existsSync(join(here, source)), `${name}: ${source}`)
      else used.add(source)
    }
  }
  t.same([...used].sort(), Object.keys(volumes).sort())
})

t.test('every setting is one that a program reads', async t => {
  const documented = [...(await readFile(join(repository, '.env.example'), 'utf8')).matchAll(/^#([A-Z][A-Z0-9_]*)=/gm)].map(
    match => match[1] ?? '',
  )
  const secret =
    /for name in ([^;]*);/.exec(await readFile(join(here, 'node/with-secrets.sh'), 'utf8'))?.[1]?.split(/[\s\\]+/) ?? []
  t.same(
    secret.filter(name => !documented.includes(name) && name !== 'AWS_SESSION_TOKEN'),
    [],
    'each setting that can come from a file is documented',
  )
  for (const [name, { image, environment = {} }] of all) {
    for (const [setting, value] of Object.entries(environment)) {
      t.type(value, 'string', `${name}: ${setting}`)
      if (!image.startsWith('nexmdm/node:')) continue
      const plain = setting.replace(/_FILE$/, '')
      t.ok(
        plain === setting ? documented.includes(setting) || setting === 'TMPDIR' : secret.includes(plain),
        `${name}: ${setting}`,
      )
      if (plain !== setting) t.match(value, /^\/run\/secrets\/[a-z0-9_]+$/, `${name}: ${setting}`)
    }
  }
})

t.test('every service has exactly the secrets that it names', async t => {
  const secrets = await withSecrets(t)
  for (const [name, service] of all) {
    if (name === 'secrets') continue
    const volume = mounts(service).find(({ target }) => target === '/run/secrets')?.source
    const given = volume ? await readdir(join(secrets, volume.replace(/^secrets-/, ''))) : []
    const named = [...(await textOf(service)).matchAll(/\/run\/secrets\/([\w.]+)/g)].map(match => match[1] ?? '')
    // The bucket service uses the archiver's volume.
    const others = name === 'bucket' ? [] : given
    t.same([...new Set([...named, ...others])].sort(), [...new Set(named)].sort(), `${name} needs the secrets that it gets`)
    t.same(
      [...new Set(named)].filter(file => !given.includes(file)),
      [],
      `${name} gets the secrets that it needs`,
    )
  }
  const made = mounts(services.secrets!)
    .map(({ source }) => source.replace(/^secrets-/, ''))
    .filter(directory => directory !== 'objects' && directory !== 'all')
  t.same((await readdir(secrets)).filter(directory => directory !== 'all' && directory !== 'objects').sort(), made.sort())
  const owners = Object.fromEntries(
    [...(await readFile(join(here, 'secrets/make.sh'), 'utf8')).matchAll(/^give (\w+) (\d+) /gm)].map(([, to = '', id = '']) => [
      to,
      id,
    ]),
  )
  for (const name of ['objects', 'grafana']) t.equal(services[name]?.user?.split(':')[0], owners[name], name)
  t.match(await readFile(join(here, 'pgbouncer/Dockerfile'), 'utf8'), `--uid ${owners.pgbouncer}`)
})

t.test('a service that names another one shares a network with it, and names the port on which it listens', async t => {
  const ini = await readFile(join(here, 'pgbouncer/pgbouncer.ini'), 'utf8')
  const listening: Record<string, string[]> = {
    postgres: ['5432'],
    pgbouncer: [/^listen_port = (\d+)$/m.exec(ini)?.[1] ?? ''],
    'server-1': [services['server-1']?.environment?.PORT ?? ''],
    'server-2': [services['server-2']?.environment?.PORT ?? ''],
    haproxy: ['BALANCER_BIND', 'OPERATORS_BIND', 'STATS_BIND'].map(name => services.haproxy?.environment?.[name]?.slice(1) ?? ''),
    objects: [/-s3\.port=(\d+)/.exec(services.objects?.command?.join(' ') ?? '')?.[1] ?? ''],
    prometheus: ['9090'],
  }
  t.match(ini, 'host=postgres port=5432 dbname=fleet')
  let found = 0
  for (const [name, service] of all) {
    const text = `${await textOf(service)} ${name === 'pgbouncer' ? ini.replace(/host=(\S+) port=/, '$1:') : ''}`
    for (const [other, ports] of Object.entries(listening)) {
      for (const [, port = ''] of text.matchAll(new RegExp(`(?<![\\w/-])${other}:(\\d+)(?![\\d.])`, 'g'))) {
        found++
        t.ok(ports.includes(port), `${name}: ${other}:${port}`)
        // The bucket service reads the archiver's settings, but does not use the database.
        if (name === 'bucket' && other === 'postgres') continue
        t.ok(
          service.networks?.some(network => services[other]?.networks?.includes(network)),
          `${name} reaches ${other}`,
        )
      }
    }
  }
  t.ok(found >= 14, `${found} addresses`)
  for (const [name, service] of all) {
    for (const port of service.ports ?? []) {
      const inside = port.split(':')[2] ?? ''
      t.ok([...(listening[name] ?? []), '3000'].includes(inside), `${name}: ${port}`)
    }
  }
  t.match(
    await readFile(join(here, 'node/Dockerfile'), 'utf8'),
    `http://127.0.0.1:${services['server-1']?.environment?.PORT}/healthz`,
  )
})

function mounts({ volumes = [] }: Service) {
  return volumes.map(volume => {
    if (typeof volume !== 'string') return volume
    const [source = '', target = ''] = volume.split(':')
    return { source, target }
  })
}

/** All texts that configure a service: its settings and command, its Dockerfile, and the mounted configuration. */
async function textOf(service: Service) {
  const { environment, command, entrypoint } = service
  const texts = [JSON.stringify([environment, command, entrypoint])]
  const build = buildOf(service)
  if (build) texts.push(await readFile(build.dockerfile, 'utf8'))
  for (const { source } of mounts(service).filter(({ source }) => source.startsWith('.'))) {
    const path = join(here, source)
    const files = await readdir(path, { recursive: true }).then(
      names => names.map(name => join(path, name)),
      () => [path],
    )
    for (const file of files.filter(file => /\.(ya?ml|cfg)$/.test(file))) texts.push(await readFile(file, 'utf8'))
  }
  // Comments contain examples.
  return texts.join('\n').replace(/^\s*#.*$/gm, '')
}

async function hasHealthcheck(service: Service) {
  if (service.healthcheck) return service.healthcheck.disable !== true
  const build = buildOf(service)
  return build !== undefined && (await readDockerfile(build.dockerfile)).getHEALTHCHECKs().length > 0
}

/** Whether a service runs as root. For an image of others compose.yaml must set the user, because they may change theirs. */
async function isRoot(service: Service) {
  if (service.user !== undefined) return /^0(:|$)/.test(service.user)
  const build = buildOf(service)
  return build === undefined || lastUser(await readDockerfile(build.dockerfile)) === 'root'
}

function lastUser(dockerfile: Awaited<ReturnType<typeof readDockerfile>>) {
  const users = dockerfile.getInstructions().filter(instruction => instruction.getKeyword() === 'USER')
  return users.at(-1)?.getArguments()[0]?.getValue() ?? 'root'
}
