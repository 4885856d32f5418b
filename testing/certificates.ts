// Makes certificates for tests, with openssl, and speaks HTTPS.
import { execFile } from 'node:child_process'
import { readFile, writeFile } from 'node:fs/promises'
import type { IncomingMessage } from 'node:http'
import { Agent, request, type RequestOptions } from 'node:https'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import type { TLSSocket } from 'node:tls'
import { promisify } from 'node:util'
import type { Test } from 'tap'
import { makeDirectory } from './archiver.ts'

const run = promisify(execFile)

/** Makes a certificate authority. `issue` makes a certificate of it for this machine and returns the files, as certbot names them. */
export async function withAuthority(t: Test) {
  const directory = await makeDirectory(t)
  const openssl = (...args: string[]) => run('openssl', args, { cwd: directory })
  const newKey = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes']
  await openssl('req', '-x509', ...newKey, '-days', '300', '-subj', '/CN=Authority', '-keyout', 'ca.key', '-out', 'ca.pem')
  const caFile = join(directory, 'ca.pem')
  const ca = await readFile(caFile, 'utf8')

  async function issue(name: string, { days = 90, names = 'DNS:localhost, IP:127.0.0.1' } = {}) {
    const [cert, key] = [join(directory, `${name}.fullchain.pem`), join(directory, `${name}.privkey.pem`)]
    await openssl('req', ...newKey, '-subj', `/CN=${name}`, '-keyout', key, '-out', `${name}.csr`)
    await writeFile(join(directory, `${name}.names`), `subjectAltName = ${names}\n`)
    const signed = ['-CA', 'ca.pem', '-CAkey', 'ca.key', '-CAcreateserial', '-extfile', `${name}.names`]
    await openssl('x509', '-req', '-days', String(days), '-in', `${name}.csr`, ...signed, '-out', `${name}.pem`)
    await writeFile(cert, `${await readFile(join(directory, `${name}.pem`), 'utf8')}${ca}`)
    return { cert, key }
  }
  return { directory, ca, caFile, issue }
}

export interface SecureAnswer {
  status: number
  headers: IncomingMessage['headers']
  text: string
  /** The name in the certificate that the server has shown. */
  shown: string
  /** The client's port, which tells connections apart. */
  port: number
}

/** Sends a request such as `GET /readyz` over HTTPS. Without `agent` it has a connection of its own. */
export function secureCall(
  t: Test,
  url: string,
  call: string,
  { body, ...options }: Pick<RequestOptions, 'agent' | 'ca' | 'headers'> & { body?: string } = {},
): Promise<SecureAnswer> {
  const [method, path] = call.split(' ') as [string, string]
  const own = new Agent({ maxCachedSessions: 0 })
  t.teardown(() => own.destroy())
  return new Promise((resolve, reject) => {
    request(url + path, { method, agent: own, ...options }, answer => {
      const socket = answer.socket as TLSSocket
      const shown = /CN=(.*)/.exec(socket.getPeerX509Certificate()?.subject ?? '')?.[1] ?? ''
      const { localPort } = socket
      text(answer).then(
        text => resolve({ status: answer.statusCode!, headers: answer.headers, text, shown, port: localPort! }),
        reject,
      )
    })
      .on('error', reject)
      .end(body)
  })
}
