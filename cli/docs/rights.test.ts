import { readFile } from 'node:fs/promises'
import t from 'tap'
import { rightsFile, rightsPage } from './rights.ts'
import { withDatabase } from './testing.ts'

t.test('docs/rights.md matches the catalog', async t => {
  const { admin } = await withDatabase(t)
  t.equal(await readFile(rightsFile, 'utf8'), await rightsPage(admin), 'if a right was changed on purpose, run: npm run docs')
})

t.test('a right that is missing on the page is noticed', async t => {
  const { sql, admin } = await withDatabase(t)
  await sql`grant execute on function fleet.prune(timestamptz) to fleet_server`
  await sql`grant update (alias) on fleet.devices to fleet_reader`
  const page = await rightsPage(admin)
  t.match(page, /\| `fleet\.prune\(timestamp with time zone\)` \| yes \| {2}\| {2}\| {2}\|/)
  t.match(page, /\| `fleet\.devices` \|.*update \(alias\)/)
})
