// The device of the curl that npm start prints, and its lines.
import { createHash } from 'node:crypto'
import { readFile, writeFile } from 'node:fs/promises'
import type { Sql } from 'postgres'

export interface DemoDevice {
  alias: string
  token: string
}

/**
 * The device kept in `file`, enrolled when there is none yet that this database knows: the same curl is printed by
 * every start, and a new one when the database is another.
 */
export async function demoDevice(sql: Sql, file: string): Promise<DemoDevice> {
  const kept = await readFile(file, 'utf8').then(
    text => JSON.parse(text) as DemoDevice,
    () => undefined,
  )
  if (kept) {
    const known = await sql`select from fleet.authenticate(${createHash('sha256').update(kept.token).digest()})`
    if (known.length) return kept
  }
  for (let number = 1; ; number++) {
    const alias = `demo-${number}`
    try {
      const [row] = await sql<{ token: string }[]>`select token from fleet.create_device(${alias})`
      if (!row) throw new Error(`fleet.create_device('${alias}') gave no row`)
      const device = { alias, token: row.token }
      await writeFile(file, `${JSON.stringify(device)}\n`, { mode: 0o600 })
      return device
    } catch (error) {
      // Taken by a device whose token we do not have: the next name.
      if ((error as { code?: unknown }).code !== 'FL409' || number === 1000) throw error
    }
  }
}

/** The lines of a curl that posts a heartbeat, to be pasted into a shell. Each fits a terminal of 100 columns with an indent of two. */
export function curlLines(url: string, device: DemoDevice) {
  const heartbeat = { battery_pct: 87, network_type: 'wifi', unity_running: true, signal_dbm: -61 }
  return [
    `curl -sS -X POST ${shellQuote(`${url}/v1/heartbeat`)} -H ${shellQuote('Content-Type: application/json')} \\`,
    `  -d ${shellQuote(JSON.stringify(heartbeat))} \\`,
    `  -H ${shellQuote(`Authorization: Bearer ${device.token}`)}`,
  ]
}

/** A psql line that shows the device's last status; `connection` is what psql takes as a database, quoted for the shell. */
export function psqlLine(psql: string, connection: string, device: DemoDevice) {
  return `${psql} ${connection} -xc "select * from fleet.device_status where alias = '${device.alias}'"`
}

/** A word for a POSIX shell. */
export function shellQuote(word: string) {
  return /'/.test(word) && !/["$`\\!]/.test(word) ? `"${word}"` : `'${word.replaceAll(`'`, `'\\''`)}'`
}
