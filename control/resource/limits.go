package resource

import (
	"google.golang.org/protobuf/reflect/protoreflect"
)

// limit is what this version does with a field or an enum value that Istio has
// and weft does not carry out.
type limit struct {
	refused bool   // else accepted with a warning: it changes nothing here
	mend    string // what to do instead
}

// supported complains of what this version does not carry out, and reports
// whether to go on with it.
func (w walker) supported(d protoreflect.Descriptor, path string) bool {
	l, limited := limits[d.FullName()]
	name := string(d.Name())
	if fd, ok := d.(protoreflect.FieldDescriptor); ok {
		name = fd.JSONName()
	}
	switch {
	case l.refused:
		w.unsupported(path, l.mend, "%s", name)
	case limited:
		w.warnf(path, l.mend, "%s has no effect", name)
	}
	return !l.refused
}

// emptyList complains of a list without elements, which protobuf takes for none.
// In a rule of authorization that would widen it to everybody: what a template
// rendered from an empty set must not do.
func (w walker) emptyList(fd protoreflect.FieldDescriptor, path string) {
	if fd.FullName().Parent().Parent() == securityPkg && fd.FullName() != securityPkg+".AuthorizationPolicy.rules" {
		w.errorf(path, "leave it out to ask nothing", "the list is empty, and would fit everything")
		return
	}
	w.warnf(path, "", "the list is empty, which is the same as no list")
}

// fieldNames are the fields that are worth naming as a mend.
func fieldNames(md protoreflect.MessageDescriptor) []string {
	var names []string
	for i := range md.Fields().Len() {
		if fd := md.Fields().Get(i); !limits[fd.FullName()].refused {
			names = append(names, fd.JSONName())
		}
	}
	return names
}

const (
	networkingPkg = "istio.networking.v1alpha3"
	securityPkg   = "istio.security.v1beta1"
)

// certificateMend is for where Istio's users name a certificate in a Gateway.
const certificateMend = "leave it out: a gateway is given its certificate and key when it is started"

// limits is by the full name of the descriptor. An enum's values are named
// beside their enum, not inside it, as protobuf does.
var limits = map[protoreflect.FullName]limit{
	networkingPkg + ".Destination.port":                       {mend: "an instance is called on the port that it registered"},
	networkingPkg + ".HTTPRoute.delegate":                     {refused: true},
	networkingPkg + ".HTTPRoute.fault":                        {refused: true},
	networkingPkg + ".HTTPRoute.mirror":                       {refused: true},
	networkingPkg + ".HTTPRoute.mirrors":                      {refused: true},
	networkingPkg + ".HTTPRoute.mirror_percent":               {refused: true},
	networkingPkg + ".HTTPRoute.mirror_percentage":            {refused: true},
	networkingPkg + ".HTTPRoute.cors_policy":                  {refused: true},
	networkingPkg + ".HTTPMatchRequest.port":                  {refused: true},
	networkingPkg + ".HTTPMatchRequest.source_labels":         {refused: true},
	networkingPkg + ".HTTPMatchRequest.source_namespace":      {refused: true},
	networkingPkg + ".HTTPMatchRequest.stat_prefix":           {mend: "metrics name the services"},
	networkingPkg + ".L4MatchAttributes.destination_subnets":  {refused: true},
	networkingPkg + ".L4MatchAttributes.source_subnet":        {refused: true},
	networkingPkg + ".L4MatchAttributes.source_labels":        {refused: true},
	networkingPkg + ".L4MatchAttributes.source_namespace":     {refused: true},
	networkingPkg + ".TLSMatchAttributes.destination_subnets": {refused: true},
	networkingPkg + ".TLSMatchAttributes.source_labels":       {refused: true},
	networkingPkg + ".TLSMatchAttributes.source_namespace":    {refused: true},
	networkingPkg + ".HTTPRedirect.prefix_rewrite":            {refused: true},
	networkingPkg + ".HTTPRedirect.FROM_REQUEST_PORT":         {refused: true},
	networkingPkg + ".HTTPRewrite.uri_regex_rewrite":          {refused: true},
	networkingPkg + ".HTTPRetry.retry_remote_localities":      {mend: "a retry goes to another endpoint, and to another zone when its own has none"},

	networkingPkg + ".DestinationRule.workload_selector":                           {refused: true},
	networkingPkg + ".TrafficPolicy.port_level_settings":                           {refused: true, mend: "an instance has one port: put them into trafficPolicy itself"},
	networkingPkg + ".TrafficPolicy.tunnel":                                        {refused: true},
	networkingPkg + ".TrafficPolicy.retry_budget":                                  {refused: true, mend: "write retry.budget of a ResiliencePolicy; without one it is 20 %"},
	networkingPkg + ".LoadBalancerSettings.ConsistentHashLB.HTTPCookie.attributes": {refused: true},
	networkingPkg + ".LoadBalancerSettings.zone_aware_lb_setting":                  {refused: true},
	networkingPkg + ".LoadBalancerSettings.PASSTHROUGH":                            {refused: true},
	networkingPkg + ".ConnectionPoolSettings.TCPSettings.tcp_keepalive":            {refused: true},
	networkingPkg + ".ConnectionPoolSettings.TCPSettings.max_connection_duration":  {refused: true},
	networkingPkg + ".ConnectionPoolSettings.TCPSettings.idle_timeout":             {refused: true, mend: "write connectionPool.http.idleTimeout"},
	networkingPkg + ".ConnectionPoolSettings.HTTPSettings.max_retries":             {refused: true, mend: "write retry.budget of a ResiliencePolicy; without one it is 20 %"},
	networkingPkg + ".ConnectionPoolSettings.HTTPSettings.use_client_protocol":     {mend: "write h2UpgradePolicy, or declare the protocol of the service"},
	networkingPkg + ".ConnectionPoolSettings.HTTPSettings.http2_keep_alive":        {},
	networkingPkg + ".OutlierDetection.consecutive_errors":                         {refused: true, mend: "write consecutive5xxErrors or consecutiveGatewayErrors"},
	networkingPkg + ".OutlierDetection.outlier_detection_http_error_codes":         {refused: true},
	networkingPkg + ".ClientTLSSettings.DISABLE":                                   {refused: true, mend: "leave tls out: weft uses mTLS wherever a sidecar is"},
	networkingPkg + ".ClientTLSSettings.SIMPLE":                                    {refused: true},
	networkingPkg + ".ClientTLSSettings.MUTUAL":                                    {refused: true},
	networkingPkg + ".ClientTLSSettings.client_certificate":                        {refused: true},
	networkingPkg + ".ClientTLSSettings.private_key":                               {refused: true},
	networkingPkg + ".ClientTLSSettings.ca_certificates":                           {refused: true},
	networkingPkg + ".ClientTLSSettings.credential_name":                           {refused: true},
	networkingPkg + ".ClientTLSSettings.subject_alt_names":                         {refused: true},
	networkingPkg + ".ClientTLSSettings.sni":                                       {refused: true},
	networkingPkg + ".ClientTLSSettings.insecure_skip_verify":                      {refused: true},
	networkingPkg + ".ClientTLSSettings.ca_crl":                                    {refused: true},

	networkingPkg + ".Gateway.selector":                          {mend: "a gateway is started with the name of its Gateway"},
	networkingPkg + ".Server.bind":                               {refused: true, mend: "a gateway's address is given when it is started"},
	networkingPkg + ".ServerTLSSettings.https_redirect":          {refused: true, mend: "write a VirtualService with match.scheme http and a redirect"},
	networkingPkg + ".ServerTLSSettings.server_certificate":      {refused: true, mend: certificateMend},
	networkingPkg + ".ServerTLSSettings.private_key":             {refused: true, mend: certificateMend},
	networkingPkg + ".ServerTLSSettings.credential_name":         {refused: true, mend: certificateMend},
	networkingPkg + ".ServerTLSSettings.credential_names":        {refused: true, mend: certificateMend},
	networkingPkg + ".ServerTLSSettings.tls_certificates":        {refused: true, mend: certificateMend},
	networkingPkg + ".ServerTLSSettings.ca_certificates":         {refused: true},
	networkingPkg + ".ServerTLSSettings.ca_crl":                  {refused: true},
	networkingPkg + ".ServerTLSSettings.ca_cert_credential_name": {refused: true},
	networkingPkg + ".ServerTLSSettings.subject_alt_names":       {refused: true},
	networkingPkg + ".ServerTLSSettings.verify_certificate_spki": {refused: true},
	networkingPkg + ".ServerTLSSettings.verify_certificate_hash": {refused: true},
	networkingPkg + ".ServerTLSSettings.min_protocol_version":    {refused: true},
	networkingPkg + ".ServerTLSSettings.max_protocol_version":    {refused: true},
	networkingPkg + ".ServerTLSSettings.cipher_suites":           {refused: true},
	networkingPkg + ".ServerTLSSettings.insecure_skip_verify":    {refused: true},
	networkingPkg + ".ServerTLSSettings.MUTUAL":                  {refused: true},
	networkingPkg + ".ServerTLSSettings.OPTIONAL_MUTUAL":         {refused: true},
	networkingPkg + ".ServerTLSSettings.ISTIO_MUTUAL":            {refused: true},
	networkingPkg + ".ServerTLSSettings.AUTO_PASSTHROUGH":        {refused: true},
	networkingPkg + ".Server.default_endpoint":                   {refused: true},
	networkingPkg + ".Port.target_port":                          {refused: true},

	securityPkg + ".AuthorizationPolicy.targetRef":           {refused: true, mend: "write a selector"},
	securityPkg + ".AuthorizationPolicy.targetRefs":          {refused: true, mend: "write a selector"},
	securityPkg + ".AuthorizationPolicy.CUSTOM":              {refused: true},
	securityPkg + ".AuthorizationPolicy.provider":            {refused: true},
	securityPkg + ".Source.request_principals":               {refused: true},
	securityPkg + ".Source.not_request_principals":           {refused: true},
	securityPkg + ".Source.remote_ip_blocks":                 {refused: true, mend: "ipBlocks is the address of the connection"},
	securityPkg + ".Source.not_remote_ip_blocks":             {refused: true, mend: "notIpBlocks is the address of the connection"},
	securityPkg + ".Source.trust_domains":                    {refused: true, mend: "write principals: [\"<trust domain>/*\"]"},
	securityPkg + ".Source.not_trust_domains":                {refused: true, mend: "write notPrincipals: [\"<trust domain>/*\"]"},
	securityPkg + ".PeerAuthentication.MutualTLS.PERMISSIVE": {refused: true, mend: "write STRICT: a sidecar takes mTLS only"},
	securityPkg + ".PeerAuthentication.MutualTLS.DISABLE":    {refused: true, mend: "write STRICT: a sidecar takes mTLS only"},
}
