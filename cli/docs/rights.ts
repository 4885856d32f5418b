// Makes docs/rights.md: who may call, read and write what.
import type { Sql } from 'postgres'
import { ROLES } from '../../local/cluster.ts'
import { code, generated, page, table } from './markdown.ts'
import { sqlFile } from './sql-files.ts'

/** All roles except the owner, in the order of the columns. The last one has the rights of logins that see some cohorts. */
const GRANTED = [...ROLES.filter(role => role !== 'fleet_owner'), 'fleet_cohort_reader']
const names = GRANTED.map(role => role.replace('fleet_', '').replace('_', ' '))

/** Makes the page from the catalog of the database at `sql`. */
export async function rightsPage(sql: Sql) {
  const grants = await sqlFile('grants.sql')
  const routines = await sql<{ name: string; roles: string[] }[]>`
    select p.oid::regprocedure::text as name, array_agg(r.role order by r.role) as roles
    from pg_proc p
    cross join unnest(${GRANTED}::text[]) as r (role)
    where p.pronamespace in ('fleet'::regnamespace, 'fleet_guard'::regnamespace)
      and has_function_privilege(r.role, p.oid, 'execute')
    group by p.oid
    order by p.oid::regprocedure::text collate "C"`
  const relations = await sql<{ name: string; role: string; rights: string }[]>`
    select c.oid::regclass::text as name, r.role,
      string_agg(
        lower(v.privilege) || case when has_table_privilege(r.role, c.oid, v.privilege) then '' else k.columns end,
        ', ' order by v.position
      ) as rights
    from pg_class c
    cross join unnest(${GRANTED}::text[]) as r (role)
    cross join unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER'])
      with ordinality as v (privilege, position)
    cross join lateral (
      select ' (' || string_agg(a.attname, ', ' order by a.attnum) || ')' as columns
      from pg_attribute a
      where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        and v.privilege in ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES')
        and has_column_privilege(r.role, c.oid, a.attnum, v.privilege)
    ) k
    where c.relnamespace in ('fleet'::regnamespace, 'fleet_guard'::regnamespace, 'fleet_detached'::regnamespace)
      and c.relkind in ('r', 'p', 'v') and not c.relispartition
      and (has_table_privilege(r.role, c.oid, v.privilege) or k.columns is not null)
    group by c.oid, r.role
    order by c.oid::regclass::text collate "C"`
  const policies = await sql<{ name: string; role: string; condition: string }[]>`
    select p.polrelid::regclass::text as name,
      case when 0 = any (p.polroles) then 'everybody' else p.polroles[1]::regrole::text end as role,
      pg_get_expr(p.polqual, p.polrelid) as condition
    from pg_policy p
    where not p.polpermissive
    order by p.polrelid::regclass::text collate "C", p.polname collate "C"`
  return page(
    '# Who may do what',
    generated('the catalog of a migrated database'),
    `The rights are defined in [${grants}](../${grants}), and [threats.md](threats.md) explains what they prevent. ` +
      'A role has only the rights that are listed here, and nothing is GRANTED to PUBLIC. ' +
      'Functions that are not listed may be called only by `fleet_owner`.',
    '## Functions and procedures',
    table(
      ['routine', ...names],
      routines.map(({ name, roles }) => [code(name), ...GRANTED.map(role => (roles.includes(role) ? 'yes' : ''))]),
    ),
    '## Tables and views',
    'If columns are named in brackets, the right is limited to them.',
    table(
      ['relation', ...names],
      [...new Set(relations.map(row => row.name))].map(name => [
        code(name),
        ...GRANTED.map(role => relations.find(row => row.name === name && row.role === role)?.rights ?? ''),
      ]),
    ),
    '## Rows',
    'In these tables a member of the role sees only the rows for which the condition is true (row-level security); everybody else ' +
      'sees all. See [decision 0055](decisions/0055-readers-bound-to-cohorts.md).',
    table(
      ['relation', 'role', 'condition'],
      policies.map(({ name, role, condition }) => [code(name), code(role), code(condition.replace(/\s+/g, ' '))]),
    ),
  )
}
