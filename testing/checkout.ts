// Makes checkouts whose server does wrong, for the tests of what measures it.
import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import type { Test } from 'tap'
import { built, repository } from '../lib/repository.ts'

/** A checkout whose server acknowledges heartbeats and stores none. */
export async function lyingServer(t: Test) {
  return checkout(t, {
    'server/main.ts': `await import(${url('bench/without-database.ts')})\nawait import(${url('server/main.ts')})\n`,
  })
}

/** A checkout whose database refuses every heartbeat. */
export async function refusingServer(t: Test) {
  return checkout(t, {
    'cli/migrate.ts': `
      import postgres from 'postgres'
      import { migrate as run } from ${url('cli/migrate.ts')}
      export async function migrate(url, options) {
        await run(url, options)
        const sql = postgres(url, { max: 1 })
        await sql.unsafe(\`
          create function public.refuse() returns trigger language plpgsql as $$
            begin raise exception using errcode = '53100', message = 'there is no space left'; end
          $$;
          create trigger refuse before insert on fleet.device_heartbeats for each row execute function public.refuse();
        \`)
        await sql.end()
      }
    `,
  })
}

function url(path: string) {
  return JSON.stringify(pathToFileURL(built(path)).href)
}

/** A directory with what the benches start of a checkout: this one's programs, or the given ones. */
async function checkout(t: Test, files: Record<string, string>) {
  const directory = await mkdtemp(join(tmpdir(), 'fleet-checkout-'))
  t.teardown(() => rm(directory, { recursive: true, force: true }))
  for (const name of ['server', 'cli']) await mkdir(join(directory, 'build', name), { recursive: true })
  await symlink(join(repository, 'node_modules'), join(directory, 'node_modules'))
  await symlink(join(repository, 'build/bench'), join(directory, 'build/bench'))
  await writeFile(join(directory, 'package.json'), '{"type":"module"}')
  const own = {
    'cli/migrate.ts': `export { migrate } from ${url('cli/migrate.ts')}\n`,
    'server/main.ts': `await import(${url('server/main.ts')})\n`,
  }
  for (const [path, text] of Object.entries({ ...own, ...files })) await writeFile(built(path, directory), text)
  return directory
}
