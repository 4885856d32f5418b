// Asks the server of this machine, also if it speaks HTTPS: for npm start and npm run check.
import { X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { request, type IncomingMessage } from 'node:http'
import { text } from 'node:stream/consumers'
import { connect } from 'node:tls'

interface Options {
  headers?: Record<string, string>
  timeoutMs: number
  /** TLS_CERT of the server, if its URL begins with https. */
  certFile: string | undefined
}

/**
 * Sends a GET. The server of this machine is asked at an address such as 127.0.0.1, which is not in its certificate. So over TLS it
 * must have the very certificate that is in the file, and before that nothing is sent.
 * @throws Error if it cannot be reached, or has another certificate
 */
export async function ask(url: string, { headers = {}, timeoutMs, certFile }: Options) {
  const signal = AbortSignal.timeout(timeoutMs)
  if (certFile === undefined) {
    const answer = await fetch(url, { headers, signal })
    return { status: answer.status, text: await answer.text() }
  }
  const wanted = new X509Certificate(await readFile(certFile))
  const { hostname, port } = new URL(url)
  const socket = connect({ host: hostname.replace(/^\[(.*)\]$/, '$1'), port: Number(port), rejectUnauthorized: false })
  try {
    await once(socket, 'secureConnect', { signal })
    if (socket.getPeerX509Certificate()?.fingerprint256 !== wanted.fingerprint256)
      throw new Error(`${url} has another certificate than the one in TLS_CERT ${certFile}`)
    const asked = request(url.replace(/^https:/, 'http:'), { headers, signal, createConnection: () => socket })
    const [answer] = (await once(asked.end(), 'response', { signal })) as [IncomingMessage]
    return { status: answer.statusCode ?? 0, text: await text(answer) }
  } finally {
    socket.destroy()
  }
}

/**
 * The URL at which clients reach a server that listens on this host and port. Over TLS they compare its name with the certificate, so
 * it is one that the certificate has.
 */
export async function urlFor(host: string, port: number | string, certFile: string | undefined) {
  if (certFile === undefined) return `http://${host}:${port}`
  const certificate = new X509Certificate(await readFile(certFile))
  const bare = host.replace(/^\[(.*)\]$/, '$1')
  if (certificate.checkIP(bare) !== undefined || certificate.checkHost(bare) !== undefined) return `https://${host}:${port}`
  const [, name] = /(?:^|, )DNS:([^*,]+)(?:,|$)/.exec(certificate.subjectAltName ?? '') ?? []
  return `https://${name ?? host}:${port}`
}
