// Checks a manifest as RUNBOOK.md tells people to.
import { hasPrograms, testPrograms } from './optional-programs.ts'

export const signatureTools = testPrograms('jq and openssl', ['jq', 'openssl'], () => hasPrograms('jq', 'openssl'))
