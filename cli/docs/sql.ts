// Makes docs/sql.md: the functions, procedures, views and tables for DBAs and dashboards, from the catalog.
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Sql } from 'postgres'
import { repository } from '../../lib/repository.ts'
import { SQL_STATUS } from '../../server/problem.ts'
import { anchor, block, code, generated, page, table } from './markdown.ts'
import { sqlFiles } from './sql-files.ts'

/** The meaning of each error code of the functions. A code that is missing here, or that no function raises, is an error. */
const ERRORS: Record<string, string> = {
  FL001: 'There is no proven archive, so nothing is dropped.',
  FL002: 'Something is in a state in which this cannot be done.',
  FL003: 'Another session is doing this, or holds what is needed. Try again later.',
  FL010: 'The contents differ: rows, counts or checksums. Nothing is dropped or attached.',
  FL401: 'The key or session was revoked, has ended, or has too few scopes. Nothing was done.',
  FL403: 'This is not allowed: a key that is bound to other cohorts, or a change of the audit log.',
  FL404: 'What was named does not exist.',
  FL409: 'It exists already.',
  FL422: 'An argument is not valid.',
}

const ROLES = [
  'fleet_dba',
  'fleet_reader',
  'fleet_cohort_reader',
  'fleet_server',
  'fleet_archiver',
  'fleet_verifier',
  'fleet_notifier',
]

interface Column {
  name: string
  type: string
  comment: string | null
}

interface Routine {
  schema: string
  name: string
  kind: 'function' | 'procedure'
  arguments: string
  result: string | null
  comment: string
  /** The roles that may call it. */
  roles: string[]
}

interface Relation {
  schema: string
  name: string
  kind: 'view' | 'table'
  comment: string
  /** The roles that may read it, or some of its columns. */
  roles: string[]
  columns: Column[]
}

export async function sqlPage(sql: Sql) {
  const themeOf = await themes()
  const more = await readFile(join(repository, 'docs/views.md'), 'utf8')
  const documented = [...more.matchAll(/^### (\w+)$/gm)].map(([, name]) => name!)
  const routines = await readRoutines(sql)
  const views = await readRelations(sql, 'view')
  const tables = await readRelations(sql, 'table')
  const sections = [...new Set([...routines, ...views].map(themeOf))].sort().map(theme => ({
    theme,
    routines: routines.filter(routine => themeOf(routine) === theme),
    views: views.filter(view => themeOf(view) === theme),
  }))
  const link = (one: Routine | Relation) => `[${one.name}](#${anchor(heading(one))})`
  return page(
    '# SQL reference',
    generated('the catalog of a migrated database'),
    'This page has the functions and procedures that `fleet_dba` or `fleet_reader` may call, and all views and tables of the ' +
      'schema `fleet`. All names are in this schema: write `fleet.check()`. [rights.md](rights.md) has the rights of every role. ' +
      '[views.md](views.md) has the units and costs of the views.',
    table(
      ['theme', 'functions and procedures', 'views'],
      sections.map(({ theme, routines, views }) => [
        `[${title(theme)}](#${anchor(title(theme))})`,
        routines.map(link).join(', '),
        views.map(link).join(', '),
      ]),
    ),
    'There are also the [tables](#tables) and the [error codes](#error-codes).',
    ...sections.flatMap(({ theme, routines, views }) => [
      `## ${title(theme)}`,
      ...views.map(view => relation(view, documented)),
      ...routines.map(routine),
    ]),
    '## Tables',
    ...tables.map(one => relation(one, [])),
    '## Error codes',
    'Each error has a hint that says what to do. The server answers a call that meets one of these with the HTTP status.',
    ...(await errors(sql)),
  )
}

/** A heading that is unique on the page: a function may have the name of a view, and a table that of a theme. */
function heading({ schema, name, kind }: Routine | Relation) {
  return kind === 'function' || kind === 'procedure' ? `${schema}.${name}()` : `${title(kind)} ${schema}.${name}`
}

function routine(one: Routine) {
  const { schema, name, kind, arguments: given, result, comment, roles } = one
  const { text, example } = splitComment(comment)
  // A record is described by the out parameters.
  const end = result === null || result === 'void' || result === 'record' ? '' : ` returns ${brief(result)}`
  const signature = `${kind === 'procedure' ? 'call ' : ''}${schema}.${name}(${brief(given)})${end}`
  return page(
    `### ${heading(one)}`,
    block('sql', wrap(signature)),
    text,
    example && `Example:\n\n${block('sql', example)}`,
    `May be called by ${roles.map(code).join(', ')}.`,
  ).trimEnd()
}

function relation(one: Relation, documented: string[]) {
  const { name, comment, roles, columns } = one
  const { text, example } = splitComment(comment)
  const more = documented.includes(name) ? ` More in [views.md](views.md#${anchor(name)}).` : ''
  const isDescribed = columns.some(column => column.comment !== null)
  return page(
    `### ${heading(one)}`,
    `${text}${more}`,
    example && `Example:\n\n${block('sql', example)}`,
    isDescribed
      ? table(
          ['column', 'type', 'what it is'],
          columns.map(column => [code(column.name), brief(column.type), column.comment ?? '']),
        )
      : `Columns: ${columns.map(({ name, type }) => `${code(name)} ${brief(type)}`).join(', ')}.`,
    roles.length === 0 ? 'Only `fleet_owner` may read it.' : `May be read by ${roles.map(code).join(', ')}.`,
  ).trimEnd()
}

/** The theme of each routine and view: the folder below sql/ that has the file that creates it. */
async function themes() {
  const found = new Map<string, string>()
  for (const { path, text } of await sqlFiles()) {
    for (const [, name] of text.matchAll(/^create (?:or replace )?(?:function|procedure|view) (\w+\.\w+)/gm)) {
      found.set(name!, path.split('/')[1]!)
    }
  }
  return ({ schema, name }: { schema: string; name: string }) => {
    const theme = found.get(`${schema}.${name}`)
    if (theme === undefined) throw new Error(`no file below sql/ makes ${schema}.${name}`)
    return theme
  }
}

function readRoutines(sql: Sql) {
  return sql<Routine[]>`
    select n.nspname as schema, p.proname as name, case p.prokind when 'p' then 'procedure' else 'function' end as kind,
      pg_get_function_arguments(p.oid) as arguments, pg_get_function_result(p.oid) as result,
      obj_description(p.oid, 'pg_proc') as comment, r.roles
    from pg_proc p
    join pg_namespace n on n.oid = p.pronamespace
    cross join lateral (
      select array(
        select role from unnest(${ROLES}::text[]) with ordinality as given (role, position)
        where has_function_privilege(role, p.oid, 'execute')
        order by position
      ) as roles
    ) r
    where n.nspname in ('fleet', 'fleet_guard') and r.roles && array['fleet_dba', 'fleet_reader']
    order by p.proname collate "C", p.pronargs, p.oid::regprocedure::text collate "C"`
}

function readRelations(sql: Sql, kind: Relation['kind']) {
  return sql<Relation[]>`
    select n.nspname as schema, c.relname as name, ${kind} as kind, obj_description(c.oid, 'pg_class') as comment,
      array(
        select role from unnest(${ROLES}::text[]) with ordinality as given (role, position)
        where has_any_column_privilege(role, c.oid, 'select')
        order by position
      ) as roles,
      (
        select json_agg(json_build_object(
          'name', a.attname, 'type', format_type(a.atttypid, a.atttypmod), 'comment', col_description(a.attrelid, a.attnum)
        ) order by a.attnum)
        from pg_attribute a
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
      ) as columns
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = 'fleet' and c.relkind::text = any (${kind === 'view' ? ['v'] : ['r', 'p']}) and not c.relispartition
    order by c.relname collate "C"`
}

/** The code and the message of `raise exception using`. */
const RAISED = /errcode = '(FL\d{3})',\s+message = (?:(?:pg_catalog\.)?format\()?\s*'((?:[^']|'')*)'/g

/** The meaning of each code, and the messages that use it. */
async function errors(sql: Sql) {
  const sources = await sql<{ name: string; prosrc: string }[]>`
    select proname as name, prosrc from pg_proc
    where pronamespace in ('fleet'::regnamespace, 'fleet_guard'::regnamespace)
    order by proname collate "C", oid::regprocedure::text collate "C"`
  const codes = [...new Set(sources.flatMap(({ prosrc }) => prosrc.match(/FL\d{3}/g) ?? []))].sort()
  const explained = Object.keys(ERRORS)
  if (codes.join() !== explained.join()) {
    throw new Error(`the functions raise ${codes.join()}; cli/docs/sql.ts explains ${explained.join()}`)
  }
  const messages = sources.flatMap(({ name, prosrc }) =>
    [...prosrc.matchAll(RAISED)].map(([, code, text]) => ({
      name,
      code,
      message: text!
        .replaceAll("''", "'")
        .replaceAll(/%[sIL]/g, '…')
        .replaceAll(/…+/g, '…'),
    })),
  )
  return [
    table(
      ['code', 'meaning', 'HTTP'],
      codes.map(name => [code(name), ERRORS[name], String(SQL_STATUS[name] ?? 500)]),
    ),
    'The messages:',
    table(
      ['code', 'message', 'raised by'],
      codes.flatMap(name => {
        const own = messages.filter(one => one.code === name)
        return [...new Set(own.map(({ message }) => message))].map(message => [
          code(name),
          message,
          own
            .filter(one => one.message === message)
            .map(one => one.name)
            .join(', '),
        ])
      }),
    ),
  ]
}

/** A comment may end with an example. */
function splitComment(comment: string) {
  const [text = '', example] = comment.split(/ ?Example: /)
  return { text, example }
}

function title(theme: string) {
  return theme[0]!.toUpperCase() + theme.slice(1)
}

/** Types and defaults as they are usually written. */
function brief(text: string) {
  return text
    .replaceAll('timestamp with time zone', 'timestamptz')
    .replaceAll(' DEFAULT ', ' default ')
    .replaceAll(/('[^']*'|NULL)::[a-z]+(\[\])?/g, '$1')
    .replaceAll('NULL', 'null')
    .replaceAll('TABLE(', 'table (')
    .replaceAll('SETOF ', 'setof ')
    .replaceAll(/\b(INOUT|OUT|IN) /g, (_, mode: string) => (mode === 'IN' ? '' : `${mode.toLowerCase()} `))
}

/** A signature on several lines, if it is long. */
function wrap(signature: string) {
  if (signature.length <= 110) return signature
  return signature
    .replace('(', '(\n  ')
    .replaceAll(/, (?=p_|out |inout )/g, ',\n  ')
    .replace(/\)( returns |$)/, '\n)$1')
}
