// Makes the bucket of ARCHIVE_URL where there is none, for a store that is as new as everything else in compose.yaml.
import { CreateBucketCommand, HeadBucketCommand, S3Client } from '@aws-sdk/client-s3'
import { readConfig } from '../../archiver/config.ts'

const { archiveUrl, s3Endpoint } = readConfig()
const Bucket = new URL(archiveUrl).hostname
const client = new S3Client({
  ...(s3Endpoint ? { endpoint: s3Endpoint, forcePathStyle: true } : {}),
  requestChecksumCalculation: 'WHEN_REQUIRED',
})
try {
  await client.send(new HeadBucketCommand({ Bucket }))
  console.log(`bucket ${Bucket} is there`)
} catch (error) {
  if (!(error instanceof Error && error.name === 'NotFound')) throw error
  await client.send(new CreateBucketCommand({ Bucket }))
  console.log(`bucket ${Bucket} was made`)
}
