// Makes docs/settings.md and .env.example from the environment variables in lib/settings.ts and the columns of fleet.settings.
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Sql } from 'postgres'
import { GROUPS, type Program, type Setting, settings } from '../../lib/settings.ts'
import { repository } from '../../lib/repository.ts'
import { code, generated, page, table } from './markdown.ts'

const PROGRAMS: Record<Program, string> = {
  server: 'server',
  archiver: 'archiver',
  notifier: 'notifier',
  start: '`npm start`',
  migrate: '`npm run migrate`',
  logins: '`npm run logins`',
  check: '`npm run check`',
  tests: '`npm test`',
}

const all: [string, Setting][] = Object.entries(settings)

/** Makes docs/settings.md. */
export async function settingsPage(sql: Sql) {
  const fromFiles = await settingsFromFiles()
  return page(
    '# Settings',
    generated('[lib/settings.ts](../lib/settings.ts) and the comments of the table `fleet.settings`'),
    'Some settings are environment variables, which a process reads once when it starts. ' +
      'The others are in the database and need no restart.',
    '## Environment variables',
    '`npm start` needs none of them. An empty variable is the same as one that is not set. If any is wrong, the process names ' +
      'all that are wrong and ends with exit code 2. [.env.example](../.env.example) has all of them except those of the tests.',
    ...GROUPS.flatMap(group => [
      `### ${group}`,
      table(
        ['name', 'default', 'values', 'read by', 'what it does'],
        inGroup(group).map(([name, setting]) => [
          code(name),
          defaultOf(setting),
          valuesOf(setting),
          readersOf(setting),
          setting.about,
        ]),
      ),
    ]),
    '### Secrets in files',
    'In the image of docker/node, each of these may be in a file instead; the variable with `_FILE` at the end, such as ' +
      `\`ADMIN_KEY_FILE\`, names the file: ${fromFiles.map(code).join(', ')}.`,
    '## Settings in the database',
    'The table `fleet.settings` has one row. `fleet_dba` changes a column with the statement in the last column of this table. ' +
      'Each change is recorded in `fleet.audit_log` with its time and who made it.',
    table(['column', 'type', 'default', 'limits', 'what it does', 'change it with'], await databaseSettings(sql)),
  )
}

function inGroup(group: Setting['group']) {
  return all.filter(([, setting]) => setting.group === group)
}

function defaultOf({ default: fallback, defaultAbout }: Setting) {
  return defaultAbout ?? (fallback === undefined ? '' : code(String(fallback)))
}

function valuesOf({ values, min, max, unit }: Setting) {
  if (values !== undefined) return values.map(code).join(', ')
  if (min === undefined || max === undefined) return ''
  return [`${number(min)} to ${number(max)}`, unit].filter(Boolean).join(' ')
}

function readersOf({ readBy, library }: Setting) {
  const programs = readBy.map(program => PROGRAMS[program]).join(', ')
  return library === undefined ? programs : `${programs} (by ${library})`
}

function number(value: number) {
  return value.toLocaleString('en-US', { useGrouping: value > 9_999 && value !== 65_535 })
}

/** The variables that docker/node/with-secrets.sh also reads from files. */
async function settingsFromFiles() {
  const script = await readFile(join(repository, 'docker/node/with-secrets.sh'), 'utf8')
  const names = /for name in ([^;]*);/.exec(script)?.[1]?.split(/[\s\\]+/) ?? []
  const unknown = names.filter(name => !(name in settings))
  if (names.length === 0) throw new Error('docker/node/with-secrets.sh: its list of settings was not found')
  if (unknown.length > 0) throw new Error(`docker/node/with-secrets.sh: lib/settings.ts does not have ${unknown.join(', ')}`)
  return names
}

interface DatabaseSetting {
  name: string
  type: string
  fallback: string | null
  limits: string | null
  comment: string
  is_updatable: boolean
  /** The functions that set this column. */
  setters: string[]
}

/** A row for each column of fleet.settings. The functions that set a column are found in their source. */
async function databaseSettings(sql: Sql) {
  const rows = await sql<DatabaseSetting[]>`
    select a.attname as name, format_type(a.atttypid, a.atttypmod) as type, pg_get_expr(d.adbin, d.adrelid) as fallback,
      col_description(a.attrelid, a.attnum) as comment,
      has_column_privilege('fleet_dba', a.attrelid, a.attnum, 'update') as is_updatable,
      (
        select string_agg(pg_get_expr(c.conbin, c.conrelid), ' and ' order by c.conname)
        from pg_constraint c
        where c.conrelid = a.attrelid and c.contype = 'c' and a.attnum = any (c.conkey)
      ) as limits,
      array(
        select p.proname::text
        from pg_proc p
        where p.pronamespace = 'fleet'::regnamespace
          -- At the begin of a line: not in the text of a remedy.
          and p.prosrc ~ ('\n *update fleet[.]settings[[:space:]]+set ' || a.attname || ' =')
          and has_function_privilege('fleet_dba', p.oid, 'execute')
        order by p.proname
      ) as setters
    from pg_attribute a
    left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    where a.attrelid = 'fleet.settings'::regclass and a.attnum > 0 and not a.attisdropped and a.attname <> 'is_only_row'
    order by a.attnum`
  return rows.map(({ name, type, fallback, limits, comment, is_updatable, setters }) => [
    code(name),
    type,
    fallback === null ? '' : code(plain(fallback)),
    limits === null ? '' : code(plain(limits)),
    comment,
    [
      ...setters.map(setter => code(`select fleet.${setter}(…);`)),
      ...(is_updatable ? [code(`update fleet.settings set ${name} = …;`)] : []),
    ].join(' or '),
  ])
}

/** An expression of the catalog without its casts and outer brackets. */
function plain(expression: string) {
  const text = expression
    .replaceAll(/::[a-z ]+(\[\])?/g, '')
    .replaceAll(/\((-?[\d.]+)\)/g, '$1')
    .replaceAll('= ANY (ARRAY[', 'in (')
    .replaceAll('])', ')')
    .replaceAll(' AND ', ' and ')
    .replaceAll(/\(([^()]*)\)/g, (all, inner: string) => (/ (>=?|<=?|=|in) /.test(inner) ? inner : all))
  return text.replace(/^\((.*)\)$/, '$1')
}

const PREFACE = `# Every setting, with its default or an example. \`npm start\` needs none of them. No program reads this file:
# give it to the process with your service manager (EnvironmentFile=, env_file:), or in a shell:
#   set -a; . ./.env; set +a
# \`npm run docs\` makes this file from lib/settings.ts.
`

/** Makes .env.example. */
export function envExample() {
  const groups = GROUPS.filter(group => group !== 'Tests').map(group => {
    const entries = inGroup(group).map(([name, { about, values = [], example, default: fallback = '' }]) => {
      const isListed = values.every(value => about.includes(value))
      return `${wrap(isListed ? about : `${about} One of ${values.join(', ')}.`)}\n#${name}=${example ?? fallback}\n`
    })
    return `\n# --- ${group} ${'-'.repeat(112 - group.length)}\n${entries.join('')}`
  })
  return PREFACE + groups.join('')
}

function wrap(text: string) {
  const lines = ['#']
  for (const word of text.split(' ')) {
    if (lines.at(-1)!.length + word.length >= 118) lines.push('#')
    lines[lines.length - 1] += ` ${word}`
  }
  return lines.join('\n')
}
