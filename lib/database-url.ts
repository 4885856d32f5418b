import { readFile } from 'node:fs/promises'

/** The values that postgres.js supports. Its read-write also accepts a standby, which refuses writes, so it is not listed. */
const SESSION_ATTRS = ['primary', 'standby', 'prefer-standby']
const LIST = /^[^\s:/?#[\]@,]+(:\d{1,5})?(,[^\s:/?#[\]@,]+(:\d{1,5})?)+$/

/**
 * Why a text is not the URL of a database: the end of a sentence that begins with the setting's name. Undefined if it is one.
 * The URL may name several hosts, `host1:5432,host2:5432`. The first that answers is used; with target_session_attrs, the first
 * that answers and fits. The message does not repeat the text, which may contain a password.
 */
export function databaseUrlProblem(text: string): string | undefined {
  const [, hosts] = /^postgres(?:ql)?:\/\/(?:[^/?]*@)?([^/?]*)/.exec(text) ?? []
  if (hosts === undefined) return 'must be a URL that begins with postgres://.'
  if (hosts.includes(',') && !LIST.test(hosts)) {
    return 'must list its hosts as host1:port,host2:port. Each is a name or an IPv4 address; the port is optional.'
  }
  const url = firstHost(text)
  if (url === undefined) return 'must be a URL such as postgres://user:password@host:5432/database.'
  const attrs = url.searchParams.get('target_session_attrs')
  if (attrs !== null && !SESSION_ATTRS.includes(attrs)) {
    return `must have a target_session_attrs of ${SESSION_ATTRS.join(', ')}, or none. Use primary instead of read-write.`
  }
  if (![null, 'true', 'false'].includes(url.searchParams.get('prepare'))) {
    return 'must have prepare=false (for pgBouncer before 1.21), prepare=true or neither.'
  }
  const { passfile } = splitPassfile(text)
  if (passfile !== undefined && !passfile.startsWith('/')) return 'must have a passfile that begins with /, or none.'
  return undefined
}

/**
 * For postgres.js, which does not understand libpq's `passfile`: the URL without it, and a function that reads the password at each
 * connect. So a new password in the file needs no restart. A password in the URL comes first, as in libpq. Without a line that
 * fits, the password is empty, which Postgres refuses; the driver could not handle an error here.
 */
export function withPassfile(text: string): { url: string; password?: () => Promise<string> } {
  const { url, passfile } = splitPassfile(text)
  const first = firstHost(url)
  if (passfile === undefined || first === undefined || first.password !== '') return { url }
  const hosts = /^[^:]+:\/\/(?:[^/?]*@)?([^/?]*)/.exec(url)![1]!.split(',')
  const [user, database] = [first.username, first.pathname.slice(1)].map(decodeURIComponent)
  const servers = hosts
    .map(host => /^(.*?)(?::(\d+))?$/.exec(host)!)
    .map(([, name, port]) => [name || 'localhost', port ?? '5432'])
  return {
    url,
    async password() {
      const lines = (await readFile(passfile, 'utf8').catch(() => '')).split(/\r?\n/)
      for (const line of lines.filter(line => !line.startsWith('#'))) {
        // The fields host:port:database:user:password, in which \ comes before a : or \ that belongs to the field.
        const fields = [...line.matchAll(/((?:\\.|[^:\\])*)(?::|$)/g)].map(([, field]) => field!.replace(/\\(.)/g, '$1'))
        const [host, port, name, login, password] = fields
        const fits = (field: string | undefined, value: string | undefined) => field === '*' || field === value
        const isServer = servers.some(server => fits(host, server[0]) && fits(port, server[1]))
        if (isServer && fits(name, database) && fits(login, user) && password) return password
      }
      return ''
    },
  }
}

/** The URL with this host in place of its own, or of all of its own: the same login, database and options on another machine. */
export function withHost(text: string, host: string, port: number) {
  const name = host.includes(':') ? `[${host}]` : host
  return text.replace(/^(postgres(?:ql)?:\/\/(?:[^/?]*@)?)[^/?]*/, (_, before: string) => `${before}${name}:${port}`)
}

/** `host:port` of the first host of a URL, for logs. */
export function nameOfHost(text: string) {
  const url = firstHost(text)
  return `${url?.hostname ?? ''}:${url?.port || '5432'}`
}

function splitPassfile(text: string) {
  const value = /[?&]passfile=([^&]*)/.exec(text)?.[1]
  if (value === undefined) return { url: text, passfile: undefined }
  const url = text.replace(/([?&])passfile=[^&]*(&?)/, (_, before: string, after: string) => (after === '' ? '' : before))
  return { url, passfile: decodeURIComponent(value) }
}

/** The URL with only the first of its hosts, because the URL class accepts one. */
function firstHost(text: string) {
  const one = text.replace(/^(postgres(?:ql)?:\/\/(?:[^/?]*@)?[^/?,]*)[^/?]*/, '$1')
  return URL.canParse(one) ? new URL(one) : undefined
}
