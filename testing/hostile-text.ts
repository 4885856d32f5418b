// Text that would do harm where it is taken for a statement, a format, a path or a page.
import fc from 'fast-check'

const fragments = [
  '\'', '\'\'', '"', '""', '`', '\\', '\\\'', '$$', '$1', ';', '--', '/*', '*/', '\n', '\r', '\t', '%', '%s', '%I', '%L', '%1$s', '(', ')', '{', '}', ',', '::', '..', '/', '../',
  '; create table public.pwned(); --', '\'; create table public.pwned(); --', '"; create table public.pwned(); --', '$$; create table public.pwned(); --',
  '\') ; create table public.pwned(); --', '1); create table public.pwned(); --', '\' || pg_sleep(100) || \'', '\' or true --', ' union select token_hash from fleet.devices --',
  'E\'\\\'', 'U&"\\0027"', '’', '＇', 'ʼ', '\u202e', '<script>', '${x}', '$(id)', '`id`', '|id', '&&id', 'null', 'default',
]

/** Without NUL and lone surrogates, which Postgres takes from nobody. */
export const hostileText = fc.array(
  fc.oneof({ weight: 3, arbitrary: fc.constantFrom(...fragments) }, { weight: 1, arbitrary: fc.string({ unit: 'grapheme', maxLength: 8 }) }),
  { minLength: 1, maxLength: 6 },
).map(parts => parts.join('').replaceAll('\0', ''))
