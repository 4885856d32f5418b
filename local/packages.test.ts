import { chmod, mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { advice, findPostgres } from './packages.ts'

/** A directory that looks like the programs of a PostgreSQL with these extensions. */
async function installation(t: Test, version: string, extensions: string[]) {
  const root = join(t.testdirName, version)
  await mkdir(join(root, 'share/extension'), { recursive: true })
  await mkdir(join(root, 'bin'))
  for (const name of extensions) await writeFile(join(root, `share/extension/${name}.control`), '')
  const programs = {
    postgres: `postgres (PostgreSQL) ${version} (Debian ${version}-1)`,
    pg_config: join(root, 'share'),
    initdb: '',
  }
  for (const [name, output] of Object.entries(programs)) {
    await writeFile(join(root, 'bin', name), `#!/bin/sh\necho '${output}'\n`)
    await chmod(join(root, 'bin', name), 0o755)
  }
  return join(root, 'bin')
}

t.test('the newest PostgreSQL with both extensions is found', async t => {
  t.testdir({})
  const both = ['pg_cron', 'pg_partman']
  const old = await installation(t, '14.9', both)
  const older = await installation(t, '15.18', both)
  const newer = await installation(t, '16.4', both)
  const bare = await installation(t, '17.2', ['pg_cron'])
  const all = [old, older, newer, bare, join(t.testdirName, 'none')]
  t.strictSame(await findPostgres(undefined, all), { major: 16, bin: newer })
  t.strictSame(await findPostgres(15, all), { major: 15, bin: older }, 'of the version of a cluster that is there')
  t.equal(await findPostgres(17, all), undefined)
  t.equal(await findPostgres(undefined, [old, bare]), undefined)
})

t.test('the command to install it fits the platform', { skip: process.platform === 'darwin' }, async t => {
  const having = (...paths: string[]) => advice(undefined, path => paths.includes(String(path)))
  t.match(having('/usr/bin/apt-get'), /sudo apt-get install -y postgresql-\$v postgresql-\$v-cron postgresql-\$v-partman/)
  t.match(having('/usr/bin/dnf'), /sudo dnf install -y .*pg_cron_17 pg_partman_17/)
  t.match(having('/opt/homebrew/bin/brew'), /brew install postgresql@17 pg_cron pg_partman/)
  t.match(having(), /PostgreSQL 15 or newer with the extensions pg_cron and pg_partman/)
  t.match(
    advice(15, path => path === '/usr/bin/apt-get'),
    /apt-get install -y postgresql-15 postgresql-15-cron/,
  )
})
