import { hasPrograms, testPrograms } from './optional-programs.ts'

/** The programs in the commands that the pages and npm start tell people to paste. */
export const shellTools = testPrograms('curl, jq and openssl', ['curl', 'jq', 'openssl'], () =>
  hasPrograms('curl', 'jq', 'openssl'),
)
