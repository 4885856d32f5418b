/** Those that postgres.js tells apart. Its read-write takes a standby, which refuses writes all the same. */
const SESSION_ATTRS = ['primary', 'standby', 'prefer-standby']
const LIST = /^[^\s:/?#[\]@,]+(:\d{1,5})?(,[^\s:/?#[\]@,]+(:\d{1,5})?)+$/

/**
 * What keeps a text from being the URL of a database, as the end of a sentence that begins with the setting's name; undefined: nothing.
 * It may name several hosts, `host1:5432,host2:5432`, of which the first that answers is used, with target_session_attrs the first that fits.
 * The text itself is not repeated: it may hold a password.
 */
export function databaseUrlProblem(text: string): string | undefined {
  const [, hosts] = /^postgres(?:ql)?:\/\/(?:[^/?]*@)?([^/?]*)/.exec(text) ?? []
  if (hosts === undefined) return 'must be a URL that begins with postgres://.'
  if (hosts.includes(',') && !LIST.test(hosts)) {
    return 'must name its hosts as host1:port,host2:port: names or IPv4 addresses, each with its own port or none.'
  }
  const url = firstHost(text)
  if (url === undefined) return 'must be a URL such as postgres://user:password@host:5432/database.'
  const attrs = url.searchParams.get('target_session_attrs')
  if (attrs !== null && !SESSION_ATTRS.includes(attrs)) {
    return `must say target_session_attrs=${SESSION_ATTRS.join(', ')} or nothing about it; for read-write say primary.`
  }
  if (![null, 'true', 'false'].includes(url.searchParams.get('prepare'))) {
    return 'must say prepare=false (for pgBouncer before 1.21), prepare=true or nothing about it.'
  }
  return undefined
}

/** The URL with the first of its hosts alone, since a URL of the web has one. */
function firstHost(text: string) {
  const one = text.replace(/^(postgres(?:ql)?:\/\/(?:[^/?]*@)?[^/?,]*)[^/?]*/, '$1')
  return URL.canParse(one) ? new URL(one) : undefined
}
