package http1

import "errors"

// ErrIncomplete says that the head has not ended yet: read more and parse again.
var ErrIncomplete = errors.New("http1: incomplete head")

// Error is a refused message. All Errors are static values of this package: they
// may be compared by pointer and must not be changed.
type Error struct {
	// Status is what a server should answer: 400, 413, 414, 417, 431, 501 or 505
	// for what a client sent, 502 for what a server sent.
	Status int
	// Reason is a short word for logs and metric labels: "bare_lf", "cl_te", …
	Reason string
}

func (e *Error) Error() string { return "http1: " + e.Reason }

// fault is an Error before it is known who sent the message. The parsers hand it
// around by value; ok is no fault.
type fault uint8

const (
	ok fault = iota
	incomplete

	// lines and fields
	bareLF
	bareCR
	controlByte
	obsFold
	leadingSpace
	spaceBeforeColon
	emptyName
	badName
	badValue
	noColon
	tooManyFields
	headTooLarge

	// request line
	notHTTP
	badMethod
	methodTooLong
	badRequestLine
	badVersion
	unsupportedVersion
	badTarget
	targetTooLong
	badScheme
	userinfo
	badAuthority
	asteriskForm
	authorityForm

	// status line
	badStatusLine
	badStatus

	// meaning of fields
	missingHost
	emptyHost
	duplicateHost
	badHost
	clTE
	teHTTP10
	badTE
	unsupportedTE
	duplicateCL
	badCL
	hugeCL
	connectBody
	connectionOptions
	badExpectation

	// built heads
	connectionField
	hostMismatch
	lengthMismatch

	// chunked bodies
	badChunkSize
	badChunkExtension
	badChunkEnd
	chunkOverhead
	trailersTooLarge

	// paths
	badPath
	pathControl
	pathEscape
	pathAboveRoot

	faults
)

// requestErrors are the faults as answers to the client that made them.
var requestErrors = [faults]Error{
	bareLF:             {400, "bare_lf"},
	bareCR:             {400, "bare_cr"},
	controlByte:        {400, "control_byte"},
	obsFold:            {400, "obs_fold"},
	leadingSpace:       {400, "leading_space"},
	spaceBeforeColon:   {400, "space_before_colon"},
	emptyName:          {400, "empty_name"},
	badName:            {400, "bad_name"},
	badValue:           {400, "bad_value"},
	noColon:            {400, "no_colon"},
	tooManyFields:      {431, "too_many_fields"},
	headTooLarge:       {431, "head_too_large"},
	notHTTP:            {400, "not_http"},
	badMethod:          {400, "bad_method"},
	methodTooLong:      {501, "method_too_long"},
	badRequestLine:     {400, "bad_request_line"},
	badVersion:         {400, "bad_version"},
	unsupportedVersion: {505, "unsupported_version"},
	badTarget:          {400, "bad_target"},
	targetTooLong:      {414, "target_too_long"},
	badScheme:          {400, "bad_scheme"},
	userinfo:           {400, "userinfo"},
	badAuthority:       {400, "bad_authority"},
	asteriskForm:       {400, "asterisk_form"},
	authorityForm:      {400, "authority_form"},
	badStatusLine:      {400, "bad_status_line"},
	badStatus:          {400, "bad_status"},
	missingHost:        {400, "missing_host"},
	emptyHost:          {400, "empty_host"},
	duplicateHost:      {400, "duplicate_host"},
	badHost:            {400, "bad_host"},
	clTE:               {400, "cl_te"},
	teHTTP10:           {400, "te_http10"},
	badTE:              {400, "bad_te"},
	unsupportedTE:      {501, "unsupported_te"},
	duplicateCL:        {400, "duplicate_cl"},
	badCL:              {400, "bad_cl"},
	hugeCL:             {413, "huge_cl"},
	connectBody:        {400, "connect_body"},
	connectionOptions:  {400, "connection_options"},
	badExpectation:     {417, "bad_expectation"},
	connectionField:    {400, "connection_field"},
	hostMismatch:       {400, "host_mismatch"},
	lengthMismatch:     {400, "length_mismatch"},
	badChunkSize:       {400, "bad_chunk_size"},
	badChunkExtension:  {400, "bad_chunk_extension"},
	badChunkEnd:        {400, "bad_chunk_end"},
	chunkOverhead:      {400, "chunk_overhead"},
	trailersTooLarge:   {431, "trailers_too_large"},
	badPath:            {400, "bad_path"},
	pathControl:        {400, "path_control"},
	pathEscape:         {400, "path_escape"},
	pathAboveRoot:      {400, "path_above_root"},
}

// responseErrors are the same faults when a server made them: its client is not
// to blame, the answer is 502.
var responseErrors = func() [faults]Error {
	errs := requestErrors
	for i := range errs {
		errs[i].Status = 502
	}
	return errs
}()
