// The device in the curl command that npm start prints, and the lines of that command.
import { createHash } from 'node:crypto'
import { readFile, writeFile } from 'node:fs/promises'
import type { Sql } from 'postgres'

export interface DemoDevice {
  alias: string
  token: string
}

/**
 * The device that is kept in `file`. If there is none, or this database does not know it, a new one is enrolled. So every start
 * prints the same curl command, and a new one after the database was replaced.
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
      if (!row) throw new Error(`fleet.create_device('${alias}') returned no row`)
      const device = { alias, token: row.token }
      await writeFile(file, `${JSON.stringify(device)}\n`, { mode: 0o600 })
      return device
    } catch (error) {
      // The name belongs to a device whose token we do not have, so try the next one.
      if ((error as { code?: unknown }).code !== 'FL409' || number === 1000) throw error
    }
  }
}

/**
 * The lines of a curl command that posts a heartbeat, to be pasted into a shell. Each fits a terminal of 100 columns with an
 * indent of two.
 */
export function curlLines(url: string, device: DemoDevice) {
  const heartbeat = { battery_pct: 87, network_type: 'wifi', unity_running: true, signal_dbm: -61 }
  return [
    `curl -sS -X POST ${shellQuote(`${url}/v1/heartbeat`)} -H ${shellQuote('Content-Type: application/json')} \\`,
    ` -d ${shellQuote(JSON.stringify(heartbeat))} \\`,
    ` -H ${shellQuote(`Authorization: Bearer ${device.token}`)}`,
  ]
}

/** A psql command that shows the device's last status. `connection` is what psql accepts as a database, quoted for the shell. */
export function psqlLine(psql: string, connection: string, device: DemoDevice) {
  return `${psql} ${connection} -xc "select * from fleet.device_status where alias = '${device.alias}'"`
}

/** Quotes a word for a POSIX shell. */
export function shellQuote(word: string) {
  return /'/.test(word) && !/["$`\\!]/.test(word) ? `"${word}"` : `'${word.replaceAll(`'`, `'\\''`)}'`
}
