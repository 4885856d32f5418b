import t from 'tap'
import { withDatabase } from '../../testing/database.ts'
import { rightsPage } from './rights.ts'

t.test('a right that is missing on the page is noticed', async t => {
  const { sql, admin } = await withDatabase(t)
  await sql`grant execute on function fleet.prune(timestamptz) to fleet_server`
  await sql`grant update (alias) on fleet.devices to fleet_reader`
  const page = await rightsPage(admin)
  t.match(page, /\| `fleet\.prune\(timestamp with time zone\)` \| yes \| {2}\| {2}\| {2}\|/)
  t.match(page, /\| `fleet\.devices` \|.*update \(alias\)/)
})
