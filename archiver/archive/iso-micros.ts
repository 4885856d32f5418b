/** `2026-08-15 00:00:00.5+00`, as Postgres and DuckDB print UTC, in the one form that manifests have. */
export function isoMicros(text: string) {
  const parts = /^(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,6}))?(?:\+00(?::?00)?|Z)$/.exec(text)
  if (!parts) throw new Error(`expected a UTC timestamp like 2026-08-15 00:00:00.5+00, got ${text}`)
  return `${parts[1]}T${parts[2]}.${(parts[3] ?? '').padEnd(6, '0')}Z`
}
