// npm run docs: writes docs/rights.md, which lists who may call, read and write what, from the catalog of a migrated database.
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import type { Sql } from 'postgres'
import { roles } from './cluster.ts'
import { repository } from './config.ts'
import { openDatabase } from '../lib/database.ts'
import { say } from '../lib/progress.ts'
// eslint-disable-next-line import-x/no-restricted-paths -- until the page is made in cli/docs
import { cronDatabase, makeTestCluster } from '../testing/database.ts'
import { explain } from '../lib/errors.ts'

export const rightsFile = join(repository, 'docs/rights.md')

/** All roles except the owner, in the order of the columns. */
const granted = roles.filter(role => role !== 'fleet_owner')

const preface = `# Who may do what

\`npm run docs\` makes this page from the catalog of a migrated database, and a test fails if the two differ. The rights are defined in
[sql/setup/grants.sql](../sql/setup/grants.sql), and [threats.md](threats.md) explains what they prevent. A role has only the rights that are listed
here, and nothing is granted to PUBLIC. Functions that are not listed may be called only by \`fleet_owner\`.
`

/** Makes the page from the catalog of the database at `sql`. */
export async function rightsPage(sql: Sql) {
  const routines = await sql<{ name: string; roles: string[] }[]>`
    select p.oid::regprocedure::text as name, array_agg(r.role order by r.role) as roles
    from pg_proc p
    cross join unnest(${granted as string[]}::text[]) as r (role)
    where p.pronamespace in ('fleet'::regnamespace, 'fleet_guard'::regnamespace)
      and has_function_privilege(r.role, p.oid, 'execute')
    group by p.oid
    order by p.oid::regprocedure::text collate "C"`
  const relations = await sql<{ name: string; role: string; rights: string }[]>`
    select c.oid::regclass::text as name, r.role,
      string_agg(
        lower(v.privilege) || case when has_table_privilege(r.role, c.oid, v.privilege) then '' else k.columns end, ', ' order by v.position
      ) as rights
    from pg_class c
    cross join unnest(${granted as string[]}::text[]) as r (role)
    cross join unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) with ordinality as v (privilege, position)
    cross join lateral (
      select ' (' || string_agg(a.attname, ', ' order by a.attnum) || ')' as columns
      from pg_attribute a
      where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        and v.privilege in ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES') and has_column_privilege(r.role, c.oid, a.attnum, v.privilege)
    ) k
    where c.relnamespace in ('fleet'::regnamespace, 'fleet_guard'::regnamespace, 'fleet_detached'::regnamespace)
      and c.relkind in ('r', 'p', 'v') and not c.relispartition
      and (has_table_privilege(r.role, c.oid, v.privilege) or k.columns is not null)
    group by c.oid, r.role
    order by c.oid::regclass::text collate "C"`
  const names = granted.map(role => role.replace('fleet_', ''))
  const header = (first: string) => `| ${first} | ${names.join(' | ')} |\n|---|${names.map(() => '---').join('|')}|`
  const calls = routines.map(
    ({ name, roles }) => `| \`${name}\` | ${granted.map(role => (roles.includes(role) ? 'yes' : '')).join(' | ')} |`,
  )
  const tables = [...new Set(relations.map(row => row.name))].map(name => {
    const cells = granted.map(role => relations.find(row => row.name === name && row.role === role)?.rights ?? '')
    return `| \`${name}\` | ${cells.join(' | ')} |`
  })
  return [
    preface,
    '## Functions and procedures',
    '',
    header('routine'),
    ...calls,
    '',
    '## Tables and views',
    '',
    'If columns are named in brackets, the right is limited to them.',
    '',
    header('relation'),
    ...tables,
    '',
  ].join('\n')
}

async function main() {
  const { cluster, end } = await makeTestCluster()
  const sql = openDatabase(cluster.url('postgres', cronDatabase), { max: 1 })
  try {
    await writeFile(rightsFile, await rightsPage(sql))
    say('docs/rights.md is written.')
  } catch (error) {
    process.stderr.write(`${explain(error)}\n`)
    process.exitCode = 1
  } finally {
    await sql.end({ timeout: 5 })
    await end()
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) await main()
